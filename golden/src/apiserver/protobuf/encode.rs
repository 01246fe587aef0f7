//! Encodes JSON as protobuf messages, in the field order of the Go types.
//!
//! A value of another type than the field's is encoded with the wire type of the value: tests serve objects that no
//! real server would.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::schema::{Field, Message, Rule, Type};
use super::wire::{put_bytes, put_int};

/// Appends the message of `value` with these fields.
pub(super) fn message(fields: Message, value: &Value, out: &mut Vec<u8>) {
    for field in fields {
        let content = value.get(field.name).unwrap_or(&Value::Null);
        match (field.rule, content) {
            (Rule::Always, content) => put(field.number, field.type_, content, out),
            (Rule::IfSet | Rule::Each | Rule::Map, Value::Null) => {}
            (Rule::Each, Value::Array(items)) => {
                for item in items {
                    put(field.number, field.type_, item, out);
                }
            }
            (Rule::Map, Value::Object(entries)) => put_map(field, entries, out),
            (Rule::IfSet, content) => put(field.number, field.type_, content, out),
            (Rule::Each | Rule::Map, mistyped) => put_mistyped(field.number, mistyped, out),
        }
    }
}

/// A map is a repeated message of key (1) and value (2).
fn put_map(field: &Field, entries: &Map<String, Value>, out: &mut Vec<u8>) {
    let mut sorted: Vec<(&String, &Value)> = entries.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    for (key, value) in sorted {
        let mut entry = Vec::new();
        put_bytes(1, key.as_bytes(), &mut entry);
        put(2, field.type_, value, &mut entry);
        put_bytes(field.number, &entry, out);
    }
}

fn put(number: u32, type_: Type, value: &Value, out: &mut Vec<u8>) {
    let mut inner = Vec::new();
    match (type_, value) {
        (Type::Text, Value::Null) => {}
        (Type::Text, Value::String(text)) => return put_bytes(number, text.as_bytes(), out),
        (Type::Int | Type::Bool, Value::Null) => return put_int(number, 0, out),
        (Type::Int, Value::Number(_)) => return put_int(number, integer(value), out),
        (Type::Bool, Value::Bool(flag)) => return put_int(number, i64::from(*flag), out),
        (Type::Time | Type::MicroTime, Value::Null) => {}
        (Type::Time | Type::MicroTime, Value::String(text)) => match text.parse() {
            Ok(time) => put_time(type_, time, &mut inner),
            Err(_) => return put_mistyped(number, value, out),
        },
        (Type::IntOrString, Value::Null | Value::Number(_)) => put_int_or_string(0, integer(value), "", &mut inner),
        (Type::IntOrString, Value::String(text)) => put_int_or_string(1, 0, text, &mut inner),
        (Type::Quantity, Value::String(text)) => put_bytes(1, text.as_bytes(), &mut inner),
        (Type::Json, json) => put_bytes(1, json.to_string().as_bytes(), &mut inner),
        (Type::Message(fields), Value::Null | Value::Object(_)) => message(fields, value, &mut inner),
        (_, mistyped) => return put_mistyped(number, mistyped, out),
    }
    put_bytes(number, &inner, out);
}

/// `metav1.Time` drops fractions of a second, `metav1.MicroTime` fractions of a microsecond; both encode zero.
fn put_time(type_: Type, time: Timestamp, out: &mut Vec<u8>) {
    let fraction = if matches!(type_, Type::MicroTime) { time.subsec_nanosecond() / 1000 * 1000 } else { 0 };
    put_int(1, time.as_second(), out);
    put_int(2, i64::from(fraction), out);
}

fn put_int_or_string(kind: i64, number: i64, text: &str, out: &mut Vec<u8>) {
    put_int(1, kind, out);
    put_int(2, number, out);
    put_bytes(3, text.as_bytes(), out);
}

fn put_mistyped(number: u32, value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) => put_int(number, integer(value), out),
        Value::String(text) => put_bytes(number, text.as_bytes(), out),
        Value::Array(_) | Value::Object(_) => put_bytes(number, value.to_string().as_bytes(), out),
    }
}

fn integer(value: &Value) -> i64 {
    #[allow(clippy::cast_possible_truncation)] // a test that serves 1.5 as a port gets 1
    let truncated = value.as_f64().unwrap_or_default() as i64;
    value.as_i64().or(value.as_bool().map(i64::from)).unwrap_or(truncated)
}
