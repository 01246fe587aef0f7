//! The Services to inspect.

use std::net::IpAddr;

use proxier::model::{NamespacedName, ServicePortName};

/// The Services to inspect.
#[derive(Clone, Debug, Default)]
pub struct Focus {
    /// Only this Service.
    pub service: Option<NamespacedName>,
    /// Only Service ports with this endpoint.
    pub endpoint: Option<IpAddr>,
}

impl Focus {
    /// Whether all Services are selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.service.is_none() && self.endpoint.is_none()
    }

    /// Whether a Service port is selected; one without a name only if all are.
    #[must_use]
    pub fn wants(&self, name: Option<&ServicePortName>) -> bool {
        self.service.as_ref().is_none_or(|service| name.is_some_and(|name| name.service == *service))
    }

    /// Whether a Service port is selected, by its name in rules.
    #[must_use]
    pub fn wants_text(&self, name: &str) -> bool {
        self.service.as_ref().is_none_or(|service| is_of(name, service))
    }
}

/// Whether a Service port's name in rules is one of the Service's.
#[must_use]
pub fn is_of(name: &str, service: &NamespacedName) -> bool {
    let rest = name.strip_prefix(&*service.namespace).and_then(|rest| rest.strip_prefix('/'));
    let rest = rest.and_then(|rest| rest.strip_prefix(&*service.name));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}
