//! Tests of flags in every spelling, and of their effect on the configuration.

use super::*;

fn line(text: &str) -> CommandLine {
    let arguments = std::iter::once("kube-proxy").chain(text.split_whitespace()).map(str::to_owned);
    parse(arguments).unwrap_or_else(|stop| panic!("{}", stop.text))
}

fn shown(line: &CommandLine, name: &str) -> String {
    let found = line.shown.iter().find(|(flag, _)| flag == name);
    found.unwrap_or_else(|| panic!("no flag {name}")).1.clone()
}

#[test]
fn flags_are_taken_in_every_spelling() {
    let line = line(
        "--mode iptables --masquerade_all --iptables-localhost-nodeports=false -v2 --cluster_cidr=10.0.0.0/8 \
         --nodeport-addresses a,b --nodeport-addresses=c --iptables-sync-period 1m --masquerade-all=T --v=4 -v=5",
    );
    let file = line.complete().expect("a configuration").file;
    assert_eq!((&*file.mode, file.iptables.masquerade_all), ("iptables", true));
    assert_eq!(file.iptables.localhost_node_ports, Some(false));
    assert_eq!((file.logging.verbosity, &*file.cluster_cidr), (5, "10.0.0.0/8"));
    assert_eq!(file.node_port_addresses, ["a", "b", "c"]);
    assert_eq!(shown(&line, "iptables-sync-period"), "1m0s");
    assert_eq!(shown(&line, "nodeport-addresses"), "[a,b,c]");
}

#[test]
fn empty_arguments_are_accepted_and_others_refused() {
    let parsed = |words: &[&str]| {
        parse(std::iter::once("kube-proxy").chain(words.iter().copied()).map(str::to_owned)).map_err(|stop| stop.text)
    };
    let line = parsed(&["", "--config", "", "-v=3", ""]).expect("nothing is said");
    assert_eq!((line.flags.general.config, line.flags.logs.verbosity), (None, 3));
    let said = parsed(&["", "up", "--v=2", "down"]).expect_err("those mean nothing");
    assert!(
        said.ends_with("Error: \"kube-proxy\" does not take any arguments, got [\"\" \"up\" \"down\"]\n"),
        "{said}"
    );
}

#[test]
fn help_is_a_switch_that_comes_before_arguments() {
    let asked = |text: &str| parse(std::iter::once("kube-proxy").chain(text.split(' ')).map(str::to_owned));
    for text in ["-h", "--help", "--help=true", "-h=T", "--help=false --help", "up --help", "--version --help=1"] {
        let stop = asked(text).expect_err(text);
        assert!(stop.asked && stop.text.contains("--proxy-mode"), "{text}");
    }
    for text in ["trace -h", "trace --help", "help trace"] {
        let stop = asked(text).expect_err(text);
        assert!(stop.asked && stop.text.contains("--in-interface"), "{text}");
    }
    assert!(["--help=false", "-h=0", "--help --help=f"].iter().all(|text| asked(text).is_ok()));
    for (text, said) in [
        ("--help=x", "invalid argument \"x\" for \"-h, --help\" flag"),
        ("-v=x", "invalid argument \"x\" for \"-v, --v\" flag"),
        ("--help --no-such-flag", "unknown flag: --no-such-flag"),
    ] {
        let stop = asked(text).expect_err(text);
        assert!(!stop.asked && stop.text.contains(said), "{text}: {}", stop.text);
    }
}

/// behaviour.yaml I2: kube-proxy keeps the default, and panics when the flag comes twice.
#[test]
fn of_addresses_given_twice_the_last_one_counts() {
    let addresses = |text: &str| {
        let file = line(text).complete().expect("a configuration").file;
        (file.healthz_bind_address, file.metrics_bind_address)
    };
    let twice = "--metrics-bind-address= --metrics-bind-address=1.2.3.4 --healthz-bind-address=1.2.3.4:5 --healthz-bind-address=";
    assert_eq!(addresses(twice), ("0".to_owned(), "1.2.3.4:10249".to_owned()));
    assert_eq!(addresses("--healthz-bind-address=::1 --healthz-port=7").0, "[::1]:7");
    assert_eq!(addresses("--healthz-bind-address=::1 --healthz-port=0").0, "0");
    assert_eq!(addresses("--healthz-bind-address=1.2.3.4:5 --healthz-port=7").0, "1.2.3.4:5");
    let file = line("--bind-address=10.0.0.1 --bind-address=").complete().expect("a configuration").file;
    assert_eq!(file.bind_address, "0.0.0.0", "nothing is the Node's own");
}

/// behaviour.yaml I18: kube-proxy looks at the node's family only where a file is.
#[test]
fn defaults_depend_on_the_nodes_family_from_flags_too() {
    let file = line("--bind-address=fd00::1 --metrics-port=7").complete().expect("a configuration").file;
    assert_eq!((&*file.healthz_bind_address, &*file.metrics_bind_address), ("[::]:10256", "[::1]:7"));
}

/// behaviour.yaml I17: kube-proxy takes nothing for a network, and dies of it.
#[test]
fn a_list_of_nothing_is_none() {
    let flags = "--cluster-cidr= --nodeport-addresses= --ipvs-exclude-cidrs= --proxy-mode=ipvs";
    let file = line(flags).complete().expect("a configuration").file;
    assert!(file.node_port_addresses.is_empty() && file.ipvs.exclude_cidrs.is_empty());
    assert!(crate::config::validate(file, "host").is_ok());
}

#[test]
fn a_path_of_nothing_is_none() {
    for text in ["--config= --write-config-to= --objects=", "--config=/x --config="] {
        let line = line(text);
        let general = &line.flags.general;
        assert_eq!((&general.config, &general.write_config_to, &line.flags.source.objects), (&None, &None, &None));
        assert_eq!(shown(&line, "config"), "");
    }
}

#[test]
fn log_flags_take_precedence_over_the_file() {
    let path = std::env::temp_dir().join(format!("kube-proxy-logs-{}", std::process::id()));
    let text = "logging: {verbosity: 1, flushFrequency: 9s, vmodule: [{filePattern: run, verbosity: 3}]}";
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    std::fs::write(&path, format!("{head}{text}\n")).expect("a file");
    let file = line(&format!("--config {} -v=2 --vmodule=api=5,node=4", path.display())).complete().expect("read").file;
    std::fs::remove_file(path).expect("it can go");
    assert_eq!(file.logging.verbosity, 2);
    assert_eq!(file.logging.flush_frequency.map(|flush| flush.duration), "9s".parse().ok());
    let levels: Vec<(&str, u32)> =
        file.logging.vmodule.iter().map(|item| (&*item.file_pattern, item.verbosity)).collect();
    assert_eq!(levels, [("api", 5), ("node", 4), ("run", 3)]);
}

#[test]
fn shown_values_are_written_as_go_writes_them() {
    let line = line(
        "--ipvs-exclude-cidrs=a,b --feature-gates B=false,A=1 --kube-api-qps=2.50 --enable_dsr --oom-score-adj -3",
    );
    for (name, value) in [
        ("ipvs-exclude-cidrs", "[a,b]"),
        ("feature-gates", "A=true,B=false"),
        ("kube-api-qps", "2.5"),
        ("help", "false"),
        ("enable-dsr", "true"),
        ("oom-score-adj", "-3"),
        ("config", ""),
    ] {
        assert_eq!(shown(&line, name), value, "{name}");
    }
    assert!(line.shown.is_sorted());
}

proptest::proptest! {
    #[test]
    fn any_command_line_is_parsed_or_refused(
        words in proptest::collection::vec(r"(--?[a-z_-]{0,20}=?|--oom-score-adj|--vmodule=|--feature-gates=|-v|\PC{0,6}|=|[0-9]{1,12}|true){1,2}", 0..5),
    ) {
        let words = std::iter::once("kube-proxy".to_owned()).chain(words);
        match parse(words) {
            // It may name a file, which is not looked for here.
            Ok(line) if line.flags.general.config.is_none() => {
                let complete = line.complete();
                let _ = complete.map(|complete| crate::config::validate(complete.file, "host"));
            }
            Ok(_) => {}
            Err(stop) => proptest::prop_assert!(stop.asked || stop.text.contains("Error: "), "{}", stop.text),
        }
    }
}
