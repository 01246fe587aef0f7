//! The synthetic load: realistic Services and EndpointSlices whose JSON is generated when sent.

use std::io::{self, Write};
use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The namespace of the objects.
pub(super) const NAMESPACE: &str = "scale";

/// A Service of the load, or its EndpointSlice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Synthetic {
    pub(super) service: u32,
    /// The number of endpoints of the slice; `None` for the Service.
    pub(super) endpoints: Option<u32>,
    pub(super) version: u64,
}

impl Synthetic {
    pub(super) fn name(&self) -> String {
        let suffix = if self.endpoints.is_some() { "-x7k2p" } else { "" };
        format!("svc-{:05}{suffix}", self.service)
    }

    /// The fields that selectors read.
    pub(super) fn head(&self) -> Value {
        let service = format!("svc-{:05}", self.service);
        let labels = match self.endpoints {
            None => json!({ "app": service, "team": "load" }),
            Some(_) => json!({
                "app": service,
                "team": "load",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            }),
        };
        let mut head = json!({ "metadata": { "namespace": NAMESPACE, "name": self.name(), "labels": labels } });
        if self.endpoints.is_none() {
            head["spec"] = json!({ "clusterIP": self.cluster_ip().to_string(), "type": "ClusterIP" });
        }
        head
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self.endpoints {
            None => self.write_service(out),
            Some(endpoints) => self.write_slice(endpoints, out),
        }
        .expect("memory can be written");
    }

    /// From the tenth address of 10.96.0.0/12 on; the first ones are well known.
    fn cluster_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 10).to_bits() + self.service)
    }

    fn write_metadata(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let Self { service, version, .. } = self;
        let metadata = &self.head()["metadata"];
        write!(
            out,
            r#"{{"metadata":{{"name":{},"namespace":{},"uid":"{}","resourceVersion":"{version}","generation":1,"#,
            metadata["name"],
            metadata["namespace"],
            uid(u32::from(self.endpoints.is_some()), *service),
        )?;
        write!(out, r#""creationTimestamp":"2026-01-15T09:30:00Z","labels":{},"#, metadata["labels"])
    }

    fn write_service(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let ip = self.cluster_ip();
        self.write_metadata(out)?;
        write!(
            out,
            concat!(
                r#""annotations":{{"meta.helm.sh/release-name":"svc-{service:05}","#,
                r#""meta.helm.sh/release-namespace":"scale"}}}},"#,
                r#""spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}}],"#,
                r#""selector":{{"app":"svc-{service:05}"}},"clusterIP":"{ip}","clusterIPs":["{ip}"],"#,
                r#""type":"ClusterIP","sessionAffinity":"None","ipFamilies":["IPv4"],"#,
                r#""ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"#,
                r#""status":{{"loadBalancer":{{}}}}}}"#
            ),
            service = self.service,
            ip = ip,
        )
    }

    fn write_slice(&self, endpoints: u32, out: &mut Vec<u8>) -> io::Result<()> {
        self.write_metadata(out)?;
        write!(
            out,
            concat!(
                r#""generateName":"svc-{service:05}-","annotations":{{"#,
                r#""endpoints.kubernetes.io/last-change-trigger-time":"2026-01-15T09:30:00Z"}},"#,
                r#""ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"svc-{service:05}","#,
                r#""uid":"{uid}","controller":true,"blockOwnerDeletion":true}}]}},"#,
                r#""addressType":"IPv4","ports":[{{"name":"http","protocol":"TCP","port":8080}}],"endpoints":["#
            ),
            service = self.service,
            uid = uid(0, self.service),
        )?;
        for i in 0..endpoints {
            if i > 0 {
                out.push(b',');
            }
            self.write_endpoint(self.service * endpoints + i, out)?;
        }
        write!(out, "]}}")
    }

    /// `pod` counts over the whole load: each pod has its own address, on 500 nodes in three zones.
    fn write_endpoint(&self, pod: u32, out: &mut Vec<u8>) -> io::Result<()> {
        let node = pod % 500;
        write!(
            out,
            concat!(
                r#"{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"#,
                r#""targetRef":{{"kind":"Pod","namespace":"scale","name":"svc-{service:05}-7d9c5b6f4d-{pod:05x}","#,
                r#""uid":"{uid}"}},"nodeName":"node-{node:03}","zone":"zone-{zone}"}}"#
            ),
            address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + pod),
            service = self.service,
            pod = pod,
            uid = uid(2, pod),
            node = node,
            zone = ['a', 'b', 'c'][node as usize % 3],
        )
    }
}

fn uid(space: u32, number: u32) -> String {
    format!("{number:08x}-5ca1-4e00-8{space:03x}-00000000{:04x}", number % 0xffff)
}
