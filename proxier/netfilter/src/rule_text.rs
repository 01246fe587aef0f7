//! Parses the text of an iptables rule, as [`Rule`] displays it and `iptables-save` prints it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::IpFamily;
use super::iptables::{Chain, Comment, Match, Negatable, ProtocolName, Rule, Suffix, Target, random_share};

/// The most names that are kept for the life of the process; those of an honest node are some dozens.
const NAMES_MAX: usize = 4096;

/// A name for the life of the process. `None` if there are too many different ones.
pub(crate) fn intern(name: &str) -> Option<&'static str> {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return Some(known);
    }
    if names.len() >= NAMES_MAX {
        return None;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    Some(kept)
}

/// The transport protocols that rules of this crate match.
pub(crate) const PROTOCOLS: [(ProtocolName, u8); 3] = [("tcp", 6), ("udp", 17), ("sctp", 132)];

impl Rule {
    /// Parses a rule's text, without `-A CHAIN`.
    ///
    /// The comment's whole text becomes its subject. A target that is no target of this crate and has no options is a
    /// chain. `None` for text that a [`Rule`] cannot express.
    #[must_use]
    pub fn parse(family: IpFamily, text: &str) -> Option<Self> {
        let mut parser = Parser { words: Words { rest: text }, family, rule: Self::default(), not: false };
        while let Some(word) = parser.words.next() {
            parser.option(&word)?;
        }
        (!parser.not).then_some(parser.rule)
    }
}

/// The words of a rule. A word in double quotes may contain spaces, and characters escaped by a backslash.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<Cow<'a, str>> {
        self.rest = self.rest.trim_start_matches(' ');
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return self.quoted(quoted).map(Cow::Owned);
        }
        let (word, rest) = self.rest.split_once(' ').unwrap_or((self.rest, ""));
        self.rest = rest;
        (!word.is_empty()).then_some(Cow::Borrowed(word))
    }

    fn quoted(&mut self, text: &'a str) -> Option<String> {
        let (mut word, mut escaped) = (String::with_capacity(text.len().min(256)), false);
        for (at, c) in text.char_indices() {
            match c {
                _ if escaped => {
                    word.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = &text[at + 1..];
                    return Some(word);
                }
                _ => word.push(c),
            }
        }
        self.rest = "";
        None
    }

    /// Takes the next word if it is this one.
    fn take(&mut self, expected: &str) -> bool {
        let rest = self.rest.trim_start_matches(' ');
        let after = rest.strip_prefix(expected).filter(|after| after.is_empty() || after.starts_with(' '));
        after.map(|after| self.rest = after).is_some()
    }

    /// The word after this one, which must come next.
    fn value(&mut self, option: &str) -> Option<Cow<'a, str>> {
        self.take(option).then(|| self.next()).flatten()
    }

    fn number<T: std::str::FromStr>(&mut self, option: &str) -> Option<T> {
        self.value(option)?.parse().ok()
    }
}

struct Parser<'a> {
    words: Words<'a>,
    family: IpFamily,
    rule: Rule,
    not: bool,
}

impl Parser<'_> {
    fn option(&mut self, word: &str) -> Option<()> {
        let not = std::mem::take(&mut self.not);
        match word {
            "!" if !not => self.not = true,
            "-s" => self.rule.source = Some(Negatable { not, value: self.net()? }),
            "-d" => self.rule.destination = Some(Negatable { not, value: self.net()? }),
            "-i" => self.rule.in_interface = Some(Negatable { not, value: self.words.next()?.into_owned() }),
            "-p" if !not => self.rule.protocol = Some(protocol(&self.words.next()?)?),
            "-m" if !not => {
                let name = self.words.next()?;
                let found = self.extension(&name)?;
                self.rule.matches.push(found);
            }
            "-j" if !not && self.rule.target.is_none() => {
                let name = self.words.next()?;
                self.rule.target = Some(self.target(&name)?);
            }
            _ => return None,
        }
        Some(())
    }

    fn net(&mut self) -> Option<IpNet> {
        let word = self.words.next()?;
        let net: IpNet = word.parse().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))?;
        Some(net).filter(|net| IpFamily::of_net(net) == self.family && net.trunc() == *net)
    }

    fn extension(&mut self, name: &str) -> Option<Match> {
        let words = &mut self.words;
        Some(match name {
            "comment" => Match::Comment(Comment {
                prefix: "",
                subject: Arc::from(&*words.value("--comment")?),
                suffix: Suffix::Text(""),
            }),
            "conntrack" => {
                let not = words.take("!");
                Match::CtState(Negatable { not, value: intern(&words.value("--ctstate")?)? })
            }
            "mark" => {
                let not = words.take("!");
                Match::Mark(Negatable { not, value: same_bits(&words.value("--mark")?)? })
            }
            "addrtype" => {
                let not = words.take("!");
                let side = words.next()?;
                words.take("LOCAL").then_some(())?;
                match (&*side, not) {
                    ("--src-type", true) => Match::SourceIsNotLocal,
                    ("--src-type", false) => Match::SourceIsLocal,
                    ("--dst-type", false) => Match::DestinationIsLocal,
                    _ => return None,
                }
            }
            "physdev" => {
                (words.take("!") && words.take("--physdev-is-in")).then_some(())?;
                Match::NotFromBridge
            }
            "set" => Match::Set { name: intern(&words.value("--match-set")?)?, directions: intern(&words.next()?)? },
            "ipvs" => {
                let (protocol, ip) = (words.number("--vproto")?, words.number::<IpAddr>("--vaddr")?);
                Match::Ipvs { protocol, address: SocketAddr::new(ip, words.number("--vport")?) }
            }
            "statistic" => {
                words.value("--mode").filter(|mode| mode == "random")?;
                Match::OneIn(one_in(&words.value("--probability")?)?)
            }
            "recent" => self.recent()?,
            "nfacct" => Match::Account(intern(&words.value("--nfacct-name")?)?),
            transport => {
                let name = protocol(transport)?;
                match words.value("--dport") {
                    Some(port) => Match::DestinationPort(name, port.parse().ok()?),
                    None => Match::Transport(name),
                }
            }
        })
    }

    fn recent(&mut self) -> Option<Match> {
        let (words, family) = (&mut self.words, self.family);
        let seconds = if words.take("--rcheck") {
            let seconds = words.number("--seconds")?;
            words.take("--reap").then_some(Some(seconds))?
        } else {
            words.take("--set").then_some(None)?
        };
        let list = Chain::parse(&words.value("--name")?)?;
        words.value("--mask").filter(|mask| mask == family.recent_mask())?;
        words.take("--rsource").then_some(match seconds {
            Some(seconds) => Match::RecentlySeen { list, seconds, family },
            None => Match::RememberSource { list, family },
        })
    }

    fn target(&mut self, name: &str) -> Option<Target> {
        let words = &mut self.words;
        Some(match name {
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "RETURN" => Target::Return,
            "MARK" => {
                let value = words.value("--set-xmark")?;
                let (mark, mask) = value.split_once('/')?;
                match (hexadecimal(mark)?, hexadecimal(mask)?) {
                    (mark, mask) if mark == mask => Target::SetMark(mark),
                    (mark, 0) => Target::FlipMark(mark),
                    _ => return None,
                }
            }
            "MASQUERADE" => Target::Masquerade { random_fully: words.take("--random-fully") },
            "DNAT" => {
                let address: SocketAddr = words.number("--to-destination")?;
                Target::Dnat(Some(address).filter(|address| IpFamily::of(&address.ip()) == self.family)?)
            }
            "REJECT" => {
                words.value("--reject-with").filter(|kind| kind == self.family.reject_with())?;
                Target::Reject(self.family)
            }
            chain => Target::Jump(Chain::parse(chain)?),
        })
    }
}

fn protocol(name: &str) -> Option<ProtocolName> {
    PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(known, _)| *known)
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// A mark that is its own mask.
fn same_bits(text: &str) -> Option<u32> {
    let (mark, mask) = text.split_once('/')?;
    hexadecimal(mark).filter(|mark| hexadecimal(mask) == Some(*mark))
}

/// The `n` of a probability 1/`n`.
fn one_in(text: &str) -> Option<u32> {
    let share: f64 = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive, saturating
    let n = (1.0 / share).round() as u32;
    // Large numbers share their ten decimals with neighbours; the text decides.
    let decimal = |n: &u32| format!("{:.11}", Match::probability(*n)) == text;
    Some(n).filter(decimal).filter(|n| random_share(*n) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(family: IpFamily, text: &str) {
        let rule = Rule::parse(family, text).unwrap_or_else(|| panic!("cannot parse {text}"));
        assert_eq!(rule.to_string(), text);
    }

    #[test]
    fn every_option_is_parsed_as_it_is_printed() {
        for text in [
            "",
            " ! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment --comment \"a/b:c cluster IP\" -m tcp --dport 80 -j KUBE-X",
            " ! -i cali+ -m comment --comment \"say \\\"no\\\" \\\\ it\\'s\" -j KUBE-X",
            " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            " -m mark ! --mark 0x4000/0x4000 -j RETURN",
            " -m addrtype --src-type LOCAL -m addrtype ! --src-type LOCAL -m addrtype --dst-type LOCAL",
            " -m set --match-set KUBE-A dst,dst -m physdev ! --physdev-is-in -j ACCEPT",
            " -m ipvs --vproto 6 --vaddr 10.0.0.1 --vport 80 -j DROP",
            " -m statistic --mode random --probability 0.33333333349 -j KUBE-X",
            " -m recent --rcheck --seconds 300 --reap --name K --mask 255.255.255.255 --rsource -j KUBE-X",
            " -p tcp -m recent --set --name K --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.0.0.1:80",
            " -m nfacct --nfacct-name x -j MARK --set-xmark 0x4000/0x4000",
            " -j MARK --set-xmark 0x4000/0x0",
            " -j MASQUERADE",
            " -j MASQUERADE --random-fully",
            " -j REJECT --reject-with icmp-port-unreachable",
        ] {
            same(IpFamily::V4, text);
        }
        same(IpFamily::V6, " -s fd00::/8 -p sctp -m sctp -j DNAT --to-destination [fd00::1]:80");
        same(IpFamily::V6, " -j REJECT --reject-with icmp6-port-unreachable");
    }

    #[test]
    fn text_that_is_not_understood_is_refused() {
        for text in [
            " -j KUBE-X -j KUBE-Y",
            " -m addrtype ! --dst-type LOCAL",
            " -m mark --mark 0x1/0xff",
            " -j MARK --set-xmark 0x1/0xff",
            " -m limit --limit 5/sec",
            " -o eth0",
            " -s 10.0.0.1/8",
            " -s fd00::/8",
            " !",
            " -j LOG --log-prefix x",
            " -m comment --comment \"open",
            " -m statistic --mode random --probability 0.25",
            " -j DNAT --to-destination 10.0.0.1",
        ] {
            assert_eq!(Rule::parse(IpFamily::V4, text), None, "{text}");
        }
    }

    #[test]
    fn every_number_of_endpoints_is_read_back() {
        for n in (1..3000).chain([5000, 10_000, 20_000]) {
            same(IpFamily::V4, &Rule { matches: vec![Match::OneIn(n)], ..Rule::default() }.to_string());
        }
    }
}
