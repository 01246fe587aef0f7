//! The chains of a Service as `iptables-save` prints them, with explanations.

use std::process::Command;

use netfilter::IpFamily;
use netfilter::kernel::FlavourChoice;

/// The rules of the nat table.
#[derive(Debug)]
pub struct NatRules(Vec<String>);

/// A rule and its explanation.
#[derive(Debug, PartialEq, Eq)]
pub struct ExplainedRule {
    /// The printed rule.
    pub rule: String,
    /// The explanation.
    pub meaning: String,
}

impl NatRules {
    /// Reads the rules in the calling thread's namespace.
    pub fn read(choice: &FlavourChoice, family: IpFamily) -> Result<Self, String> {
        let program = format!("{}{}-save", family.iptables(), choice.infix);
        let output = Command::new(&program).args(["-t", "nat"]).output();
        let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(saved: &str) -> Self {
        Self(saved.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
    }

    /// The rules on the path of a packet to a Service port's cluster IP.
    pub fn path(&self, service_port: &str) -> Vec<&str> {
        let comment = format!("\"{service_port} cluster IP\"");
        let Some(entry) = self.chain("KUBE-SERVICES").find(|rule| rule.contains(&comment)) else { return Vec::new() };
        let service: Vec<&str> = self.chain(target(entry)).collect();
        let endpoints = service.iter().flat_map(|rule| {
            // With session affinity two rules jump to a chain; only the second one counts.
            let endpoint = target(rule).starts_with("KUBE-SEP-") && !rule.contains("-m recent");
            self.chain(if endpoint { target(rule) } else { "" })
        });
        std::iter::once(entry).chain(service.iter().copied()).chain(endpoints).collect()
    }

    /// The destinations of a Service port: `ADDRESS:PORT`.
    pub fn destinations(&self, service_port: &str) -> Vec<&str> {
        self.path(service_port).into_iter().filter_map(|rule| word_after(rule, "--to-destination")).collect()
    }

    /// Explains the path; of the endpoints' chains only the first, as they are alike.
    pub fn explain(&self, service_port: &str, name_of: impl Fn(&str) -> String) -> Vec<ExplainedRule> {
        let path = self.path(service_port);
        let pods: Vec<String> = self.destinations(service_port).into_iter().map(name_of).collect();
        let (mut steps, mut endpoint, mut first) = (Vec::new(), 0, "");
        for rule in path {
            let chain = word_after(rule, "-A").unwrap_or_default();
            if chain.starts_with("KUBE-SEP-") {
                if first.is_empty() {
                    first = chain;
                }
                if first != chain {
                    break;
                }
            }
            let here = |at: usize| pods.get(at).map_or("?", |pod| &**pod);
            let meaning = if chain == "KUBE-SERVICES" {
                "Packets to the cluster IP and port go to the chain of this Service port.".to_owned()
            } else if chain.starts_with("KUBE-SEP-") {
                in_endpoint_chain(rule, here(0))
            } else if target(rule).starts_with("KUBE-SEP-") {
                endpoint += 1;
                share(here(endpoint - 1), pods.len() + 1 - endpoint)
            } else {
                "Packets that do not come from this node's pods are marked for masquerading, so that replies return through it.".to_owned()
            };
            steps.push(ExplainedRule { rule: rule.to_owned(), meaning });
        }
        steps
    }

    fn chain<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(String::as_str).filter(move |rule| word_after(rule, "-A") == Some(name))
    }
}

fn in_endpoint_chain(rule: &str, pod: &str) -> String {
    if target(rule) == "DNAT" {
        format!("Sets the packet's new destination: {pod}. The other pods have chains like this one.")
    } else {
        format!("Masquerades if {pod} itself is the client, or it would see its own address at both ends.")
    }
}

fn share(pod: &str, left: usize) -> String {
    match left {
        0 | 1 => format!("All remaining connections go to {pod}: each pod gets the same share."),
        2 => format!("Every second of the remaining connections goes to {pod}, at random."),
        3 => format!("Every third connection goes to {pod}, at random."),
        _ => format!("One in {left} of the remaining connections goes to {pod}, at random."),
    }
}

fn target(rule: &str) -> &str {
    word_after(rule, "-j").unwrap_or_default()
}

fn word_after<'a>(rule: &'a str, option: &str) -> Option<&'a str> {
    let mut words = rule.split(' ').skip_while(move |word| *word != option);
    words.nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*nat\n:KUBE-SERVICES - [0:0]\n\
        -A KUBE-SEP-A -s 10.0.0.1/32 -m comment --comment \"x/y:z\" -j KUBE-MARK-MASQ\n\
        -A KUBE-SEP-A -p tcp -m comment --comment \"x/y:z\" -m tcp -j DNAT --to-destination 10.0.0.1:80\n\
        -A KUBE-SEP-B -p tcp -m comment --comment \"x/y:z\" -m tcp -j DNAT --to-destination 10.0.0.2:80\n\
        -A KUBE-SERVICES -d 10.96.0.1/32 -m comment --comment \"x/y:other cluster IP\" -j KUBE-SVC-O\n\
        -A KUBE-SERVICES -d 10.96.0.1/32 -m comment --comment \"x/y:z cluster IP\" -j KUBE-SVC-Z\n\
        -A KUBE-SVC-Z ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ\n\
        -A KUBE-SVC-Z -m recent --rcheck --seconds 9 --name KUBE-SEP-A -j KUBE-SEP-A\n\
        -A KUBE-SVC-Z -m statistic --mode random --probability 0.5 -j KUBE-SEP-A\n\
        -A KUBE-SVC-Z -m comment --comment \"x/y:z -> 10.0.0.2:80\" -j KUBE-SEP-B\nCOMMIT\n";

    #[test]
    fn a_packets_way_is_found_and_ends_at_the_endpoints() {
        let rules = NatRules::parse(SAVED);
        assert_eq!(rules.destinations("x/y:z"), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(rules.path("x/y:z").len(), 8);
        assert_eq!(rules.destinations("x/y:none"), Vec::<&str>::new());
    }

    #[test]
    fn each_rule_is_explained_and_one_endpoint_is_enough() {
        let saved: String = SAVED.lines().filter(|line| !line.contains("recent")).flat_map(|l| [l, "\n"]).collect();
        let steps = NatRules::parse(&saved).explain("x/y:z", |destination| format!("<{destination}>"));
        let meanings: Vec<&str> = steps.iter().map(|step| &*step.meaning).collect();
        assert_eq!(steps.len(), 6, "{steps:?}");
        assert_eq!(meanings[2], "Every second of the remaining connections goes to <10.0.0.1:80>, at random.");
        assert!(meanings[3].contains("All remaining connections go to <10.0.0.2:80>"));
        assert!(meanings[4].contains("itself is the client") && meanings[5].contains("new destination: <10.0.0.1:80>"));
    }
}
