//! The fields of API messages, in ascending order of their numbers.
//!
//! Numbers are from `generated.proto` (k8s.io/apimachinery 0.36). The Go types determine which empty fields are
//! encoded: a plain field always is, a pointer only if set.

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(in crate::apiserver) struct Field {
    pub(super) number: u32,
    /// The name in JSON.
    pub(super) name: &'static str,
    pub(super) type_: Type,
    pub(super) rule: Rule,
}

/// The fields of a message.
pub(in crate::apiserver) type Message = &'static [Field];

/// The type of a field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type {
    Text,
    Int,
    Bool,
    /// `metav1.Time`: whole seconds.
    Time,
    /// `metav1.MicroTime`: seconds and nanoseconds, exact to the microsecond.
    MicroTime,
    IntOrString,
    Quantity,
    /// `metav1.FieldsV1`: JSON text in a message.
    Json,
    Message(Message),
}

/// The condition for encoding a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A plain Go field, always encoded.
    Always,
    /// A Go pointer, encoded if set.
    IfSet,
    /// A Go slice, encoded per item.
    Each,
    /// A Go map with string keys, in key order.
    Map,
}

pub(super) const fn always(number: u32, name: &'static str, type_: Type) -> Field {
    Field { number, name, type_, rule: Rule::Always }
}

pub(super) const fn if_set(number: u32, name: &'static str, type_: Type) -> Field {
    Field { number, name, type_, rule: Rule::IfSet }
}

pub(super) const fn each(number: u32, name: &'static str, type_: Type) -> Field {
    Field { number, name, type_, rule: Rule::Each }
}

pub(super) const fn map(number: u32, name: &'static str, type_: Type) -> Field {
    Field { number, name, type_, rule: Rule::Map }
}

use Type::{Bool, Int, Json, Text, Time};

const OWNER_REFERENCE: Message = &[
    always(1, "kind", Text),
    always(3, "name", Text),
    always(4, "uid", Text),
    always(5, "apiVersion", Text),
    if_set(6, "controller", Bool),
    if_set(7, "blockOwnerDeletion", Bool),
];

const MANAGED_FIELDS_ENTRY: Message = &[
    always(1, "manager", Text),
    always(2, "operation", Text),
    always(3, "apiVersion", Text),
    if_set(4, "time", Time),
    always(6, "fieldsType", Text),
    if_set(7, "fieldsV1", Json),
    always(8, "subresource", Text),
];

pub(super) const OBJECT_META: Message = &[
    always(1, "name", Text),
    always(2, "generateName", Text),
    always(3, "namespace", Text),
    always(4, "selfLink", Text),
    always(5, "uid", Text),
    always(6, "resourceVersion", Text),
    always(7, "generation", Int),
    always(8, "creationTimestamp", Time),
    if_set(9, "deletionTimestamp", Time),
    if_set(10, "deletionGracePeriodSeconds", Int),
    map(11, "labels", Text),
    map(12, "annotations", Text),
    each(13, "ownerReferences", Type::Message(OWNER_REFERENCE)),
    each(14, "finalizers", Text),
    each(17, "managedFields", Type::Message(MANAGED_FIELDS_ENTRY)),
];

pub(super) const CONDITION: Message = &[
    always(1, "type", Text),
    always(2, "status", Text),
    always(3, "observedGeneration", Int),
    always(4, "lastTransitionTime", Time),
    always(5, "reason", Text),
    always(6, "message", Text),
];

pub(super) const LIST_META: Message = &[
    always(1, "selfLink", Text),
    always(2, "resourceVersion", Text),
    always(3, "continue", Text),
    if_set(4, "remainingItemCount", Int),
];

const STATUS_CAUSE: Message = &[always(1, "reason", Text), always(2, "message", Text), always(3, "field", Text)];

const STATUS_DETAILS: Message = &[
    always(1, "name", Text),
    always(2, "group", Text),
    always(3, "kind", Text),
    each(4, "causes", Type::Message(STATUS_CAUSE)),
    always(5, "retryAfterSeconds", Int),
    always(6, "uid", Text),
];

pub(super) const STATUS: Message = &[
    always(1, "metadata", Type::Message(LIST_META)),
    always(2, "status", Text),
    always(3, "message", Text),
    always(4, "reason", Text),
    if_set(5, "details", Type::Message(STATUS_DETAILS)),
    always(6, "code", Int),
];
