//! Output and exit codes.

use super::*;

fn fails(arguments: &[&str], with: &str) {
    let output = output(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.contains(with), "{arguments:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
}

#[test]
fn invalid_command_line_is_refused_with_kube_proxys_message() {
    fails(&["--no-such-flag"], "\nError: unknown flag: --no-such-flag\n");
    fails(&["up"], "\nError: \"kube-proxy\" does not take any arguments, got [\"up\"]\n");
    fails(&["--config"], "\nError: flag needs an argument: --config\n");
    let address = "\nError: invalid argument \"x\" for \"--bind-address\" flag: \"x\" is not a valid IP address\n";
    fails(&["--bind_address=x"], address);
    fails(&["--version=v1.30.0"], "Error: invalid argument \"v1.30.0\" for \"--version\" flag");
}

#[test]
fn invalid_configuration_is_refused_in_one_line() {
    let all = "\"command failed\" err=\"failed validate: [KubeProxyConfiguration.";
    fails(&["--proxy-mode=userspace", "--conntrack-min=-1", "--iptables-sync-period=-1s"], all);
    fails(&["--proxy-mode=kernelspace"], "must be iptables, ipvs, nftables or blank");
    for qps in ["nan", "-inf"] {
        let qps = format!("--kube-api-qps={qps}");
        fails(&[&qps, "--write-config-to=/nowhere/x"], "which a file cannot express");
    }
    fails(&["--config=/nowhere/config.conf"], "failed complete: open /nowhere/config.conf: No such file or directory");
    fails(&["--feature-gates=KubeProxyIPVS=false", "--proxy-mode=ipvs"], "the feature gate KubeProxyIPVS is off");
    fails(&["--hostname-override=  "], "failed complete: empty hostname-override is invalid");
}

#[test]
fn requested_output_goes_to_standard_output() {
    let version = output(&["--version"]);
    assert_eq!((text(&version.stdout), version.status.code()), ("Kubernetes v1.37.0\n".to_owned(), Some(0)));
    let help = output(&["-h"]);
    assert_eq!((text(&help.stderr), help.status.code()), (String::new(), Some(0)));
    let help = text(&help.stdout);
    for group in ["What to do:", "Where objects come from:", "Rules:", "IPVS mode:", "Connection tracking:", "Log:"] {
        assert!(help.contains(group), "{group} in {help}");
    }
}

#[test]
fn output_to_a_full_device_keeps_the_exit_code() {
    for arguments in [&["--help"][..], &["--version"], &["--no-such-flag"]] {
        let full = || std::fs::File::options().write(true).open("/dev/full").expect("a device");
        let status =
            Command::new(BINARY).args(arguments).stdout(full()).stderr(full()).status().expect("it can be run");
        assert_eq!(status.code(), Some(i32::from(arguments == ["--no-such-flag"])), "{arguments:?}");
    }
}

#[test]
fn invalid_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let nonsense = std::ffi::OsStr::from_bytes(b"--conf\xff");
    let output = Command::new(BINARY).arg(nonsense).output().expect("it can be run");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Error: unknown flag: --conf\u{fffd}"), "{}", text(&output.stderr));
}

#[test]
fn log_format_can_be_json_with_split_streams() {
    let path = std::env::temp_dir().join(format!("kube-proxy-log-{}", std::process::id()));
    let to = format!("--write-config-to={}", path.display());
    let output = output(&[
        &to,
        "-v1",
        "--logging-format=json",
        "--log-json-split-stream",
        "--feature-gates=LoggingAlphaOptions=true",
        "--windows-service",
    ]);
    std::fs::remove_file(path).expect("it was written");
    let lines = text(&output.stdout);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let has = |message: &str| lines.iter().any(|line| line["msg"].as_str().is_some_and(|text| text.contains(message)));
    for message in ["FLAG: --v=\"1\"", "FLAG: --proxy-mode=\"\"", "Wrote configuration", "this is not Windows"] {
        assert!(has(message), "{message} in {lines:?}");
    }
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn deprecated_and_useless_flags_are_named() {
    let output = output(&["--metrics-port=1", "--write-config-to=/nowhere/x", "--enable_dsr=true"]);
    let said = text(&output.stderr);
    assert!(said.contains("Flag --metrics-port has been deprecated, "), "{said}");
    assert!(said.contains("flag --enable-dsr does nothing"), "{said}");
    assert_eq!(output.status.code(), Some(1), "it cannot be written there");
}

#[test]
fn flags_that_a_file_replaces_are_named() {
    let path = std::env::temp_dir().join(format!("kube-proxy-replaced-{}", std::process::id()));
    std::fs::write(&path, format!("{HEAD}logging: {{verbosity: 0}}\nsyncperiod: 1s\n")).expect("a file");
    let config = format!("--config={}", path.display());
    let output = output(&[&config, "--write-config-to=/nowhere/x", "--proxy-mode=ipvs", "-v1"]);
    std::fs::remove_file(path).expect("it can go");
    let said = text(&output.stderr);
    assert!(said.contains("flag --proxy-mode is ignored because of --config"), "{said}");
    assert!(said.contains("FLAG: --v=\"1\""), "-v counts: {said}");
    let lenient = "\"Using lenient decoding as strict decoding failed\" err=\"strict decoding error: unknown field \\\"syncperiod\\\"\"";
    assert!(said.contains(lenient), "{said}");
}
