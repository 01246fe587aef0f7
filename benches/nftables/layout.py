#!/usr/bin/env python3
"""The layout of nftables mode as text for `nft -f`: of a recording of the real one, or of N Services x M endpoints."""
import argparse, hashlib, re, sys
from collections import defaultdict

FAMILY = {
    "ip": dict(ip="ip", addr="ipv4_addr", lo="127.0.0.0/8", cidr="10.96.0.0/12", pods="10.244.0.0/16"),
    "ip6": dict(ip="ip6", addr="ipv6_addr", lo="::1", cidr="fd00:10:96::/108", pods="fd00:10:244::/56"),
}
HOOKS = """
chain filter-prerouting-pre-dnat { type filter hook prerouting priority dstnat - 10; policy accept; ct state new jump firewall-check; }
chain filter-output-pre-dnat { type filter hook output priority -110; policy accept; ct state new jump firewall-check; }
chain filter-input { type filter hook input priority filter; policy accept; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
chain filter-forward { type filter hook forward priority filter; policy accept; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
chain filter-output { type filter hook output priority filter; policy accept; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
chain nat-output { type nat hook output priority -100; policy accept; jump services; }
chain nat-input { type nat hook input priority 100; policy accept; jump affinity-remember; }
chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump affinity-remember; jump masquerading; }
"""


TRIES = 6  # draws before the last one, which cannot miss


class Table:
    """One family's table, in the flat layout."""

    def __init__(self, family):
        self.family, self.f = family, FAMILY[family]
        self.elements = defaultdict(list)  # set or map -> elements
        self.sizes = defaultdict(set)  # kind of chain -> endpoint counts in use
        self.firewalls, self.timeouts = {}, set()
        self.nodeports = None
        self.masquerade = self.pods = None
        self.fixed = {}

    def lb(self, place, key, endpoints, timeout, marked=False):
        """The chain that sends `key` to `endpoints`; place: service, local, nodeport, nodeport-local."""
        n = 1 << (len(endpoints) - 1).bit_length()  # the size: the next power of two
        for i, endpoint in enumerate(endpoints):
            self.elements[f"{place}-endpoints-{n}"].append(f"{key} . {i} : {endpoint}")
        self.sizes[place].add(n)
        chain = f"{place}-{n}"
        if timeout:
            self.sizes[f"{place}-affinity"].add(n)
            chain = f"{place}-affinity-{n}"
        if marked:
            self.sizes[f"external {chain}"].add(n)
            chain = f"external-{chain}"
        return f"goto {chain}"

    def text(self):
        f, ip = self.f, self.f["ip"]
        out = [f"table {self.family} kube-proxy {{", 'comment "rules for kube-proxy"']
        add = out.append
        service, port = f"{ip} daddr . meta l4proto . th dport", "meta l4proto . th dport"
        original = f"ct original {ip} daddr . meta l4proto . ct original proto-dst"
        types = dict(service=f"{f['addr']} . inet_proto . inet_service", nodeport="inet_proto . inet_service")

        def declare(kind, name, spec, comment=""):
            elements = self.elements.get(name)
            body = f" elements = {{ {', '.join(elements)} }};" if elements else ""
            note = f' comment "{comment}";' if comment else ""
            add(f"{kind} {name} {{ {spec};{note}{body} }}")

        declare("set", "hairpin-connections", f"type {f['addr']} . {f['addr']} . inet_proto . inet_service", "service hairpin connections")
        declare("set", "cluster-ips", f"type {f['addr']}", "Active ClusterIPs")
        if self.nodeports is None or "@nodeport-ips" in self.nodeports:
            declare("set", "nodeport-ips", f"type {f['addr']}", "IPs that accept NodePort traffic")
        verdicts = [("no-endpoint-services", "service", "vmap to drop or reject packets to services with no endpoints"),
                    ("no-endpoint-nodeports", "nodeport", "vmap to drop or reject packets to service nodeports with no endpoints"),
                    ("firewall-ips", "service", "destinations that are subject to LoadBalancerSourceRanges"),
                    ("service-ips", "service", "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
                    ("cluster-policy-ips", "service", "traffic of pods and of this node to addresses with externalTrafficPolicy Local"),
                    ("local-policy-ips", "service", "traffic from outside to addresses with externalTrafficPolicy Local"),
                    ("service-nodeports", "nodeport", "NodePort traffic"),
                    ("cluster-policy-nodeports", "nodeport", "traffic of pods and of this node to NodePorts with externalTrafficPolicy Local"),
                    ("local-policy-nodeports", "nodeport", "traffic from outside to NodePorts with externalTrafficPolicy Local")]
        for name, kind, comment in verdicts:
            declare("map", name, f"type {types[kind]} : verdict", comment)
        places = [("service", service), ("local", service), ("nodeport", port), ("nodeport-local", port)]
        for place, key in places:
            for n in sorted(self.sizes[place]):
                declare("map", f"{place}-endpoints-{n}", f"typeof {key} . numgen random mod {n} : {ip} daddr . th dport")
        declare("map", "affinity", f"type {f['addr']} . {types['service']} : {f['addr']} . inet_service; flags dynamic,timeout; timeout 3h; size 262144", "which endpoint a client had")
        declare("map", "affinity-ips", f"type {types['service']} : verdict", "addresses with sessionAffinity ClientIP")
        declare("map", "affinity-nodeports", f"type {types['nodeport']} : verdict", "NodePorts with sessionAffinity ClientIP")

        for line in HOOKS.strip().splitlines():
            add(line)
        nodeports = self.nodeports or f"{ip} daddr @nodeport-ips"
        add(f"chain nodeport-endpoints-check {{ {re.sub('fib daddr type local ', '', nodeports)} {port} vmap @no-endpoint-nodeports; }}")
        add(f"chain service-endpoints-check {{ {service} vmap @no-endpoint-services; }}")
        add(f"chain firewall-check {{ {service} vmap @firewall-ips; }}")
        masquerade = self.masquerade if self.masquerade is not None else f"{ip} daddr @cluster-ips {ip} saddr != {f['pods']} meta mark set meta mark | 0x4000"
        add("chain services {")
        if masquerade:
            add(masquerade)
        add(f"{service} vmap @service-ips\n{nodeports} {port} vmap @service-nodeports\n}}")
        bit = self.fixed.get("bit", "0x00004000")
        add(f"chain masquerading {{ meta mark & {bit} != 0 meta mark set meta mark ^ {bit} masquerade fully-random\n"
            f"ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random; }}")
        add("chain cluster-ips-check {\n%s\n}" % "\n".join(self.fixed.get("cluster", [
            f"{ip} daddr @cluster-ips reject", f"{ip} daddr {f['cidr']} drop"])))
        add("chain reject-chain { reject; }")
        for chain, ranges in self.firewalls.items():
            add(f"chain {chain} {{ " + " ".join(f"{ip} saddr {r} return;" for r in ranges) + " drop; }")
        # a chain for each size (1, 2, 4, 8, …), never one for a Service; a size has more than half of its slots in use
        for place, key in places:
            for n in sorted(self.sizes[place]):
                draw = lambda m: f"meta l4proto {{ tcp, udp, sctp }} dnat {ip} to {key} . numgen random mod {m} map @{place}-endpoints-{n}"
                tries = [draw(n)] if n <= 2 else [draw(n)] * TRIES + [draw(n // 2 + 1)]
                add(f"chain {place}-{n} {{\n" + "\n".join(tries) + "\n}")
            for n in sorted(self.sizes[f"{place}-affinity"]):
                add(f"chain {place}-affinity-{n} {{ meta l4proto {{ tcp, udp, sctp }} dnat {ip} to {ip} saddr . {service} map @affinity\ngoto {place}-{n}; }}")
        for name in sorted(n for n in self.sizes if n.startswith("external ")):
            chain = name.split()[1]
            add(f'chain external-{chain} {{ meta mark set meta mark | {bit}; goto {chain}; }}')
        # externalTrafficPolicy Local
        for kind, key in [("ips", service), ("nodeports", port)]:
            pods = f'{self.pods} goto cluster-policy-{kind} comment "short-circuit pod traffic"\n' if self.pods else ""
            add(f"chain cluster-policy-{kind} {{ {key} vmap @cluster-policy-{kind}; }}")
            add(f"chain external-local-{kind} {{ {pods}fib saddr type local meta mark set meta mark | {bit}\n"
                f"fib saddr type local goto cluster-policy-{kind}\n{key} vmap @local-policy-{kind}; }}")
        # sessionAffinity ClientIP: remembered behind the translation, where the endpoint is the destination
        for protocol, t in sorted(self.timeouts) if self.family == "ip" else []:  # nft 1.0.6 has too few registers for ip6
            add(f"chain remember-{protocol}-{t} {{ meta l4proto {protocol} update @affinity {{ {ip} saddr . {original} timeout {t}s : {ip} daddr . th dport }}; }}")
        add("chain affinity-remember {\n" + "\n".join(f"meta l4proto {p} ct status dnat {key} vmap @affinity-{kind}" for p in ("tcp", "udp", "sctp")
            for kind, key in (("ips", original), ("nodeports", "meta l4proto . ct original proto-dst"))) + "\n}")
        add("}")
        return "\n".join(out)


def blocks(text):
    """table -> ('set'|'map'|'chain', name) -> lines"""
    tables, table, block = {}, None, None
    for line in text.splitlines():
        if m := re.match(r"table (ip6?) kube-proxy", line):
            table = tables.setdefault(m[1], {})
        elif m := re.match(r"\t(set|map|chain) (\S+) \{", line):
            block = table.setdefault((m[1], m[2]), [])
        elif block is not None and line.startswith("\t\t"):
            block.append(line.strip())
    return tables


def elements(lines):
    joined = " ".join(lines)
    m = re.search(r"elements = \{ (.*) \}", joined)
    return re.split(r",\s+", m[1]) if m else []


def convert(family, real):
    t = Table(family)
    ip = t.f["ip"]
    chain = lambda name: [l for l in real[("chain", name)]]
    for name in ("hairpin-connections", "cluster-ips", "nodeport-ips"):
        t.elements[name] = elements(real.get(("set", name), []))
    for name in ("no-endpoint-services", "no-endpoint-nodeports"):
        t.elements[name] = elements(real[("map", name)])
    services = chain("services")
    t.masquerade = services[0] if "mark set" in services[0] else ""
    t.nodeports = re.sub(r" meta l4proto.*", "", services[-1])
    t.fixed["cluster"] = chain("cluster-ips-check")
    t.fixed["bit"] = re.search(r"mark & (\S+)", chain("masquerading")[0])[1]

    def endpoints(name):
        """of a service- or local- chain: its endpoints and affinity timeout"""
        rule = chain(name)[-1]
        if " vmap " in rule:
            chains = re.findall(r"goto (\S+?)[, ]", rule + " ")
            eps, timeout = [], 0
            for c in chains:
                rules = chain(c)
                to = re.search(r"dnat(?: ip6?)? to (\S+)", rules[-1])[1]
                eps.append(re.sub(r"^\[?(.*?)\]?:(\d+)$", r"\1 . \2", to))
                if m := re.match(r"update @(\S+)", rules[0]):
                    spec = " ".join(real[("set", m[1])])
                    m = re.search(r"timeout ((\d+)d)?((\d+)h)?((\d+)m)?((\d+)s)?(\s|$)", spec[spec.rindex("timeout "):])
                    timeout = sum(int(m[i] or 0) * s for i, s in ((2, 86400), (4, 3600), (6, 60), (8, 1)))
            return eps, timeout
        return [p for p in re.findall(r"\d+ : (\S+ \. \d+)", rule)], 0

    for kind, source in (("ips", "service-ips"), ("nodeports", "service-nodeports")):
        at = lambda place: place if kind == "ips" else {"service": "nodeport", "local": "nodeport-local"}[place]
        for element in elements(real[("map", source)]):
            key, goto = element.split(" : goto ")
            comment = ' comment "%s"' % re.sub(r"^\w+-\w+-(\S+?/\S+?)/\w+/(.*)$", r"\1:\2", goto)[:100]
            put = lambda m, verdict: t.elements[m].append(f"{key}{comment} : {verdict}")
            timeout = 0
            if goto.startswith(("service-", "local-")):
                eps, timeout = endpoints(goto)
                put(source, t.lb(at("service"), key, eps, timeout))
            else:
                rules = chain(goto)
                targets = {r: re.search(r"goto (\S+)", r)[1] for r in rules if "goto" in r}
                if rules[0].startswith("meta mark set"):
                    eps, timeout = endpoints(rules[1].split()[1])
                    put(source, t.lb(at("service"), key, eps, timeout, marked=True))
                elif len(rules) == 1 and rules[0].startswith("goto"):
                    eps, timeout = endpoints(rules[0].split()[1])
                    put(source, t.lb(at("service"), key, eps, timeout))
                else:
                    put(source, f"goto external-local-{kind}")
                    for rule, target in targets.items():
                        if target.startswith("local-"):
                            eps, timeout = endpoints(target)
                            put(f"local-policy-{kind}", t.lb(at("local"), key, eps, timeout))
                        elif "fib" in rule:
                            eps, timeout = endpoints(target)
                            put(f"cluster-policy-{kind}", t.lb(at("service"), key, eps, timeout))
                        else:
                            t.pods = re.sub(r" goto.*", "", rule)
            if timeout:
                protocol = key.split(" . ")[-2]
                t.timeouts.add((protocol, timeout))
                if family == "ip":
                    t.elements[f"affinity-{kind}"].append(f"{key} : goto remember-{protocol}-{timeout}")
    for element in elements(real[("map", "firewall-ips")]):
        key, goto = element.split(" : goto ")
        rule = chain(goto)[0]
        ranges = re.sub(r".*saddr != |[{} ]|drop", "", rule).split(",")
        name = "firewall-" + hashlib.sha256(",".join(ranges).encode()).hexdigest()[:8]
        t.firewalls[name] = ranges
        t.elements["firewall-ips"].append(f"{key} : goto {name}")
    return t


def synthetic(services, per, kinds):
    t = Table("ip")
    t.pods = f"ip saddr {t.f['pods']}"
    t.elements["nodeport-ips"] = ["192.168.50.2"]
    for s in range(services):
        ip = f"10.{96 + (s >> 16)}.{s >> 8 & 255}.{s & 255}"
        eps = [f"10.{128 + ((s * per + e) >> 16)}.{(s * per + e) >> 8 & 255}.{(s * per + e) & 255} . 8080" for e in range(per)]
        t.elements["cluster-ips"].append(ip)
        key, c = f"{ip} . tcp . 80", f' comment "ns-{s % 50}/svc-{s}:http"'
        timeout = 10800 if "affinity" in kinds else 0
        t.elements["service-ips"].append(f"{key}{c} : {t.lb('service', key, eps, timeout)}")
        if timeout:
            t.timeouts.add(("tcp", timeout))
            t.elements["affinity-ips"].append(f"{key} : goto remember-tcp-{timeout}")
        if "lb" in kinds:
            vip = f"100.{64 + (s >> 16)}.{s >> 8 & 255}.{s & 255} . tcp . 80"
            t.elements["service-ips"].append(f"{vip}{c} : {t.lb('service', vip, eps, 0, marked=True)}")
            np = f"tcp . {20000 + s % 45000}"
            t.elements["service-nodeports"].append(f"{np}{c} : {t.lb('nodeport', np, eps, 0, marked=True)}")
        if "ranges" in kinds:
            ranges = [f"172.{16 + s % 16}.{s >> 4 & 255}.0/24", "192.0.2.0/24"]
            name = f"firewall-{hashlib.sha256(','.join(ranges).encode()).hexdigest()[:8]}"
            t.firewalls[name] = ranges
            t.elements["firewall-ips"].append(f"{vip} : goto {name}")
    return t


parser = argparse.ArgumentParser()
parser.add_argument("--recording")
parser.add_argument("--services", type=int, default=10000)
parser.add_argument("--endpoints", type=int, default=10)
parser.add_argument("--kinds", default="clusterip")
args = parser.parse_args()
if args.recording:
    for family, real in blocks(open(args.recording).read()).items():
        print(convert(family, real).text())
else:
    print(synthetic(args.services, args.endpoints, args.kinds.split(",")).text())
