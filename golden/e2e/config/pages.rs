//! The pages of a running proxy that show its configuration.

use super::*;

#[test]
fn pages_show_the_files_values_and_the_flags() {
    let mut world = World::new();
    let path = world.node.dir().join("config.conf");
    std::fs::write(&path, format!("{HEAD}clusterCIDR: 10.0.0.0/8\noomScoreAdj: -1\nnodePortAddresses: [primary]\n"))
        .expect("a configuration");
    world.start(&["--config", &path.to_string_lossy(), "--cluster-cidr=11.0.0.0/8", "-v1"]);
    world.until_endpoint("10.244.2.5");

    let (status, configz) = world.node.page("/configz").expect("an answer");
    assert_eq!(status, 200);
    let begin = "{\"kubeproxy.config.k8s.io\":{\"kind\":\"KubeProxyConfiguration\",\"apiVersion\":\
                 \"kubeproxy.config.k8s.io/v1alpha1\",\"clientConnection\":{\"kubeconfig\":\"\",\"acceptContentTypes\":\"\",";
    assert!(configz.starts_with(begin), "{configz}");
    for part in [
        "\"qps\":5,\"burst\":10},\"logging\":{\"format\":\"text\",\"flushFrequency\":\"5s\",\"verbosity\":1,",
        "\"clusterCIDR\":\"10.0.0.0/8\",\"nodePortAddresses\":[\"primary\"],\"oomScoreAdj\":-1,",
        "\"ipvs\":{\"syncPeriod\":\"0s\",\"minSyncPeriod\":\"0s\",",
        "\"configSyncPeriod\":\"15m0s\",\"portRange\":\"\"}}",
    ] {
        assert!(configz.contains(part), "{part} in {configz}");
    }

    let (status, flagz) = world.node.page("/flagz").expect("an answer");
    assert_eq!(status, 200);
    let config = format!("config={}", path.display());
    for line in ["cluster-cidr=11.0.0.0/8", "oom-score-adj=-999", "metrics-port=10249", "help=false", "v=1", &config] {
        assert!(flagz.lines().any(|each| each == line), "{line} in {flagz}");
    }
    assert_eq!(world.node.page("/proxyMode"), Some((200, "iptables".to_owned())));
    assert_eq!(world.node.page("/debug/flags/v").map(|(status, _)| status), Some(404), "profiling is off");
}

/// behaviour.yaml I1, I2: kube-proxy serves at the default address all the same.
#[test]
fn empty_bind_address_serves_no_page() {
    for off in [["--healthz-bind-address=", "--metrics-bind-address="], ["--healthz-port=0", "--metrics-port=0"]] {
        let mut world = World::new();
        world.start(&off);
        world.until_endpoint("10.244.2.5");
        assert_eq!((world.node.health("/healthz"), world.node.page("/metrics")), (None, None), "{off:?}");
    }
}

#[test]
fn empty_bind_address_in_a_file_and_gates_disable_pages() {
    let mut world = World::new();
    let path = world.node.dir().join("config.conf");
    let gates = "featureGates: {ComponentFlagz: false, ComponentStatusz: false}\n";
    std::fs::write(&path, format!("{HEAD}healthzBindAddress: \"0\"\nenableProfiling: true\n{gates}"))
        .expect("a configuration");
    world.start(&["--config", &path.to_string_lossy()]);
    world.until_endpoint("10.244.2.5");
    assert_eq!(world.node.health("/healthz"), None);
    for (page, status) in [("/flagz", 404), ("/statusz", 404), ("/debug/flags/v", 406)] {
        assert_eq!(world.node.page(page).map(|(status, _)| status), Some(status), "{page}");
    }
}
