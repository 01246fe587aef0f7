//! Translates Kubernetes objects to the model: the only module that knows the API's schema.
//!
//! Services, EndpointSlices, ServiceCIDRs and the own Node, as JSON or protobuf, become [`Change`]s of one family; a
//! [`Tracker`] holds the model and knows which Service ports changed.

mod annotations;
mod change;
mod copy;
mod endpointslice;
mod node;
mod object;
mod objects;
mod objects_protobuf;
mod pending;
mod service;
mod service_cidr;
mod strings;
mod tracker;
mod zones;

pub use change::{
    Change, Kind, ObjectError, ObjectKey, SliceContent, Translation, Translator, concerns, key_of, parse_ip, parse_net,
};
pub use copy::{CopyError, CopyRequest};
pub use endpointslice::SERVICE_NAME;
pub use object::{Bookmark, DecodeError, Object, plain_words};
pub use tracker::Tracker;
