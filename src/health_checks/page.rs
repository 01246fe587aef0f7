//! The response to a Service's health checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hyper::StatusCode;
use hyper::header::HeaderName;
use netfilter::IpFamily;
use proxier::model::NamespacedName;
use serde_json::Value;

use crate::health::Health;
use crate::http::{ClientFamily, Handler, JSON, PageResponse, ResponseBuilder};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The number of a Service's ready endpoints on this node, by family.
#[derive(Debug, Default)]
pub struct LocalEndpoints([AtomicUsize; 2]);

impl LocalEndpoints {
    /// Sets the count of a family.
    pub fn set(&self, family: IpFamily, count: usize) {
        self.0[family as usize].store(count, Ordering::Relaxed);
    }

    fn get(&self, family: IpFamily) -> usize {
        self.0[family as usize].load(Ordering::Relaxed)
    }
}

/// Responds to any path and method with the count of the client's family: a dual-stack socket has clients of both.
///
/// `closing`: the Service is no longer served on this port, and connected clients get a count of 0.
pub fn handler(
    service: &NamespacedName,
    endpoints: Arc<LocalEndpoints>,
    closing: Arc<AtomicBool>,
    health: Option<Arc<Health>>,
) -> Handler {
    let service = service.clone();
    Arc::new(move |request| {
        let family = request.extensions().get().map_or(IpFamily::V4, |ClientFamily(family)| *family);
        let count = if closing.load(Ordering::Relaxed) { 0 } else { endpoints.get(family) };
        answer(&service, count, health.as_ref().is_none_or(|health| health.is_live()))
    })
}

fn answer(service: &NamespacedName, count: usize, healthy: bool) -> PageResponse {
    let text = |text: &str| Value::from(text).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {count},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        text(&service.namespace),
        text(&service.name)
    );
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    ResponseBuilder::new(JSON, body).nosniff().with(WEIGHT, &count.to_string()).status(status).build()
}

/// The handler of a Service with a constant count.
#[cfg(test)]
pub fn page_of_service(service: &NamespacedName, count: usize, health: Option<Arc<Health>>) -> Handler {
    let endpoints = LocalEndpoints::default();
    IpFamily::ALL.into_iter().for_each(|family| endpoints.set(family, count));
    handler(service, Arc::new(endpoints), Arc::default(), health)
}
