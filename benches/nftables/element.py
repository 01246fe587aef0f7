#!/usr/bin/env python3
"""Times transactions of a few elements, straight over nfnetlink, in a table that layout.py made (services x endpoints)."""
import socket, struct, sys, time, statistics
MAP = "service-endpoints-%d" % (1 << (int(sys.argv[2]) - 1).bit_length())
SERVICES, ENDPOINTS = int(sys.argv[1]), int(sys.argv[2])
NFNL_SUB, NEWELEM, DELELEM = 10, 12, 14
attr = lambda t, d: struct.pack("HH", 4 + len(d), t) + d + b"\0" * (-len(d) % 4)
nest = lambda t, d: attr(t | 0x8000, d)
def message(kind, flags, payload, res=0, family=2):
    body = struct.pack(">BBH", family, 0, res) + payload
    return struct.pack("IHHII", 16 + len(body), kind, flags | 1, 0, 0) + body
reg = lambda *parts: b"".join(p + b"\0" * (-len(p) % 4) for p in parts)
def element(op, mapname, key, data=None, goto=None):
    e = nest(1, attr(1, key))
    if data: e += nest(2, attr(1, data))
    if goto: e += nest(2, nest(2, attr(1, struct.pack(">i", -4)) + attr(2, goto.encode() + b"\0")))
    body = attr(1, b"kube-proxy\0") + attr(2, mapname.encode() + b"\0") + nest(3, nest(1, e))
    flags = 0x400 if op == NEWELEM else 0
    return message(NFNL_SUB << 8 | op, flags | 4, body)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0)); s.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)
def commit(*messages):
    batch = message(16, 0, b"", NFNL_SUB, 0) + b"".join(messages) + message(17, 0, b"", NFNL_SUB, 0)
    t = time.perf_counter(); s.send(batch)
    for _ in messages:
        r = s.recv(65536)
        assert struct.unpack("H", r[4:6])[0] == 2, r
        err = struct.unpack("i", r[16:20])[0]
        assert err == 0, err
    return (time.perf_counter() - t) * 1e6
ip = lambda n: bytes([10, 96 + (n >> 16), n >> 8 & 255, n & 255])
ep = lambda n: reg(bytes([10, 128 + (n >> 16), n >> 8 & 255, n & 255]), struct.pack(">H", 8080))
key = lambda n: reg(ip(n), b"\x06", struct.pack(">H", 80))
slot = lambda n, i: key(n) + struct.pack("I", i)
times = {"endpoint replaced": [], "endpoint more": [], "last endpoint less": [], "other endpoint less": [], "Service less": [], "Service more": []}
for r in range(200):
    n = (r * 37) % SERVICES
    N, size = ENDPOINTS, MAP.rsplit("-")[-1]
    note = lambda what, *messages: times[what].append(commit(*messages))
    add, delete = (lambda *a, **k: element(NEWELEM, *a, **k)), (lambda *a: element(DELELEM, *a))
    note("endpoint replaced", delete(MAP, slot(n, 3)), add(MAP, slot(n, 3), ep(n * N + 3)))
    note("endpoint more", add(MAP, slot(n, N), ep(7)))
    note("last endpoint less", delete(MAP, slot(n, N)))
    commit(add(MAP, slot(n, N), ep(7)))
    note("other endpoint less", delete(MAP, slot(n, 2)), add(MAP, slot(n, 2), ep(n * N + 3)), delete(MAP, slot(n, N)))
    note("Service less", delete("service-ips", key(n)))
    note("Service more", add("service-ips", key(n), goto=f"service-{size}"))
for what, t in times.items():
    t.sort(); print(f"{SERVICES} x {ENDPOINTS}: {what}: p50 {t[len(t) // 2]:.0f} us, p99 {t[-2]:.0f} us")
