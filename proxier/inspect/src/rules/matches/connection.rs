//! Matches on connections.

use super::super::args::{RuleParser, protocol};
use super::super::clauses::{Clause, OptionValues};
use super::super::conditions::{ConntrackMatch, CtState, IpvsMatch, Test};
use super::super::words::{number, ports, range};

pub(super) fn read(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    match clause.extension.name {
        "conntrack" | "state" => {
            for choice in &clause.choices {
                let test = conntrack(reading, choice)?;
                reading.add(choice.negated, test);
            }
        }
        // Before the first answer, only a connection that another one expects has a helper.
        "helper" => {
            let negated = clause.choices.iter().any(|choice| choice.negated);
            reading.add(negated, Test::State(vec![CtState::Related]));
        }
        "ipvs" => virtual_server(reading, clause)?,
        "connlimit" => {
            // Without an option the limit is an upper one.
            let upto = clause.choices.iter().find(|choice| choice.name == "--connlimit-upto");
            let above = clause.choices.iter().find(|choice| choice.name == "--connlimit-above");
            let (limit, holds) = match (upto, above) {
                (Some(upto), _) => (upto, !upto.negated),
                (None, Some(above)) => (above, above.negated),
                (None, None) => return Err("match connlimit needs a limit".to_owned()),
            };
            let most: u32 = number(&limit.name, limit.value())?;
            let test = match most {
                // The packet's own connection counts: there are always more than none.
                0 => Test::Random(if holds { 0.0 } else { 1.0 }),
                _ => Test::Limited { holds, why: clause.extension.why },
            };
            reading.add(false, test);
        }
        _ => {
            // A new connection has transferred one packet at most, so only ranges from 0 (or 1 packet) match.
            let bytes = clause.choices.iter().find(|choice| choice.name == "--connbytes");
            let bytes = bytes.ok_or("match connbytes needs --connbytes")?;
            let (from, _) = range::<u64>("--connbytes", bytes.value(), (0, u64::MAX))?;
            let in_packets = clause.find("--connbytes-mode") == Some("packets");
            let of_first = clause.find("--connbytes-dir") != Some("reply");
            // conntrack counts the packet before the rules see it.
            let holds = from == 0 || (in_packets && of_first && from == 1);
            reading.add(bytes.negated, Test::Assumed { holds, why: clause.extension.why });
        }
    }
    Ok(())
}

fn conntrack(reading: &RuleParser, choice: &OptionValues<'_>) -> Result<Test, String> {
    let text = choice.value();
    let end = |reply: bool, of_source: bool| -> Result<Test, String> {
        let net = reading.net(text)?;
        Ok(Test::Connection(ConntrackMatch::Address { reply, of_source, net }))
    };
    let port = |reply: bool, of_source: bool| -> Result<Test, String> {
        let ports = ports(&choice.name, text)?;
        Ok(Test::Connection(ConntrackMatch::Port { reply, of_source, ports }))
    };
    Ok(match &*choice.name {
        "--ctstate" | "--state" => Test::State(text.split(',').map(state).collect::<Result<_, _>>()?),
        "--ctproto" => Test::Connection(ConntrackMatch::Protocol(protocol(&text.to_ascii_lowercase())?)),
        "--ctorigsrc" => end(false, true)?,
        "--ctorigdst" => end(false, false)?,
        "--ctreplsrc" => end(true, true)?,
        "--ctrepldst" => end(true, false)?,
        "--ctorigsrcport" => port(false, true)?,
        "--ctorigdstport" => port(false, false)?,
        "--ctreplsrcport" => port(true, true)?,
        "--ctrepldstport" => port(true, false)?,
        "--ctstatus" => Test::Connection(ConntrackMatch::Status { seen: text.split(',').any(|word| word != "NONE") }),
        "--ctexpire" => Test::Connection(ConntrackMatch::Expires),
        "--ctdir" => Test::Connection(ConntrackMatch::Reply(text == "REPLY")),
        other => return Err(format!("unknown option {other}")),
    })
}

fn state(text: &str) -> Result<CtState, String> {
    match text {
        "NEW" => Ok(CtState::New),
        "ESTABLISHED" => Ok(CtState::Established),
        "RELATED" => Ok(CtState::Related),
        "INVALID" => Ok(CtState::Invalid),
        "UNTRACKED" => Ok(CtState::Untracked),
        "DNAT" => Ok(CtState::Dnat),
        "SNAT" => Ok(CtState::Snat),
        other => Err(format!("unknown connection state {other}")),
    }
}

fn virtual_server(reading: &mut RuleParser, clause: &Clause<'_>) -> Result<(), String> {
    let mut asked = IpvsMatch::default();
    for choice in &clause.choices {
        let (not, text) = (choice.negated, choice.value());
        match &*choice.name {
            "--ipvs" => asked.none = not,
            "--vproto" => {
                let number = match protocol(text)? {
                    Some(protocol) => protocol.number(),
                    None => number("--vproto", text)?,
                };
                asked.protocol = Some((not, number));
            }
            "--vaddr" => asked.address = Some((not, reading.net(text)?)),
            "--vport" => asked.port = Some((not, number("--vport", text)?)),
            "--vdir" => asked.reply = Some((not, text == "REPLY")),
            "--vmethod" => asked.masquerade = Some((not, text == "MASQ")),
            _ => asked.control = true,
        }
    }
    reading.add(false, Test::Ipvs(asked));
    Ok(())
}
