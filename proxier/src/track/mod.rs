//! From Kubernetes objects to the model: the only place that knows the API's shapes.
//!
//! In: Services, EndpointSlices, ServiceCIDRs and the own Node as JSON or protobuf. Out: [`Change`]s of one family, and a [`Tracker`] that
//! holds the model and knows which Service ports changed. Must not know: modes, the kernel, where objects come from.

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

pub use change::{Change, Kind, ObjectError, ObjectKey, SliceContent, Translation, Translator, concerns, key_of};
pub use copy::{CopyError, CopyRequest};
pub use endpointslice::SERVICE_NAME;
pub use object::{Bookmark, DecodeError, Object, plain_words};
pub use tracker::Tracker;
