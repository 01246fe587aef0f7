//! The decoders of untrusted bytes as functions that fuzz targets call. Not a public interface.

use crate::client::{Kubeconfig, ServerUrl};
use crate::config::{decode, to_yaml, validate};

pub use proxier::track::{Kind, Object, Translator};

pub use crate::source::wire::{
    Encoding, ListDecoder, ListMeta, Status, WatchDecoder, WatchEvent, WireError, decode_status,
};

/// Decodes one object and translates it.
pub fn object(json: bool, kind: Kind, bytes: &[u8]) {
    let decoded = if json { Object::from_json(kind, bytes) } else { Object::from_protobuf(kind, bytes) };
    if let Ok(object) = decoded {
        assert!(!object.key().name.name.is_empty(), "{object:?} has no name");
        let _ = Translator::new("node-a", false).applied(object);
    }
}

/// Decodes a list in one chunk and in chunks whose sizes come from the input.
///
/// # Panics
/// If the results differ.
pub fn list(json: bool, kind: Kind, input: &[u8]) {
    let decode = |chunks: &[&[u8]]| {
        let (mut decoder, mut objects) = (ListDecoder::new(kind, encoding(json)), Vec::new());
        let mut pushed = chunks.iter().map(|chunk| decoder.push(chunk, &mut |object| objects.push(object)));
        let result = pushed.find_map(Result::err);
        let result = result.map_or_else(|| decoder.finish(), Err);
        (format!("{objects:?}"), result)
    };
    let (bytes, chunks) = chunks(input);
    assert_eq!(decode(&[bytes]), decode(&chunks));
}

/// Decodes a watch in one chunk and in chunks whose sizes come from the input.
///
/// # Panics
/// If the results differ.
pub fn watch(json: bool, kind: Kind, input: &[u8]) {
    let decode = |chunks: &[&[u8]]| {
        let (mut decoder, mut events) = (WatchDecoder::new(kind, encoding(json)), Vec::new());
        let mut pushed = chunks.iter().map(|chunk| decoder.push(chunk, &mut |event| events.push(event)));
        let result = pushed.find_map(Result::err);
        let result = result.map_or_else(|| decoder.finish(), Err);
        (format!("{events:?}"), result)
    };
    let (bytes, chunks) = chunks(input);
    assert_eq!(decode(&[bytes]), decode(&chunks));
}

/// Decodes the body of a failed request.
pub fn status(json: bool, bytes: &[u8]) {
    let _ = decode_status(encoding(json), bytes);
}

/// Selects the current context of a kubeconfig and parses its server's URL.
pub fn kubeconfig(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(selected) = Kubeconfig::select_from(text, "kubeconfig") {
        let server = selected.cluster.server.unwrap_or_default();
        if let Ok(url) = ServerUrl::parse(&server, selected.cluster.certificate_authority.is_some()) {
            let uri = url.uri("/api/v1/services?watch=true").expect("a server that was accepted has valid URLs");
            assert!(uri.authority().is_some_and(|authority| !authority.host().is_empty()), "{server:?}: {uri}");
        }
    }
}

/// Decodes a configuration file, applies defaults, validates it and writes it again.
///
/// # Panics
/// If the written file cannot be decoded or differs when decoded.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(decoded) = decode(text) else { return };
    let file = decoded.file.with_defaults();
    let _ = validate(file.clone(), "node-a");
    let written = to_yaml(&file).expect("a file that was decoded can be written");
    let again = decode(&written).unwrap_or_else(|error| panic!("{error}:\n{written}"));
    assert_eq!(to_yaml(&again.file.with_defaults()).as_deref(), Ok(&*written));
}

/// Parses `--objects` YAML and translates its objects.
pub fn objects(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = crate::source::objects::parse(text);
}

/// Parses a file of `/proc` as the process metrics do.
pub fn process(bytes: &[u8]) {
    crate::metrics::process::fuzz(&String::from_utf8_lossy(bytes));
}

fn encoding(json: bool) -> Encoding {
    if json { Encoding::Json } else { Encoding::Protobuf }
}

/// Takes up to 8 chunk sizes from the start of the input and splits the rest by them, repeatedly.
fn chunks(input: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let (sizes, bytes) = input.split_at(input.len().min(8));
    let (mut rest, mut chunks) = (bytes, Vec::new());
    let mut sizes = sizes.iter().map(|size| usize::from(*size).max(1)).cycle();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
        chunks.push(chunk);
        rest = after;
    }
    (bytes, chunks)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proxier_inspect::fuzzing as node;

    use super::*;

    type Decode = fn(&[u8]);
    type DecodeKind = fn(bool, Kind, &[u8]);

    /// The fuzz targets that take bytes as they are, as in `golden/fuzz/fuzz_targets`.
    const PLAIN: [(&str, Decode); 12] = [
        ("configuration", configuration),
        ("conntrack", node::conntrack),
        ("ipset", node::ipset),
        ("ipvs", node::ipvs),
        ("kubeconfig", kubeconfig),
        ("links", node::links),
        ("netlink", node::netlink),
        ("nf_tables", node::nf_tables),
        ("objects", objects),
        ("proc", node::proc),
        ("rules", node::rules),
        ("tool", node::tool),
    ];

    /// Those whose first byte chooses the kind, with whether they read JSON.
    const OF_KINDS: [(&str, bool, DecodeKind); 6] = [
        ("json_list", true, list),
        ("json_object", true, object),
        ("json_watch", true, watch),
        ("protobuf_list", false, list),
        ("protobuf_object", false, object),
        ("protobuf_watch", false, watch),
    ];

    /// The inputs that fuzzing found for a target.
    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let inputs: Vec<_> =
            files.map(|file| std::fs::read(file.expect("an entry").path()).expect("a readable file")).collect();
        assert!(!inputs.is_empty(), "{} is empty", folder.display());
        inputs
    }

    #[test]
    fn every_input_that_fuzzing_kept_is_decoded_without_a_panic() {
        for (target, decode) in PLAIN {
            corpus(target).iter().for_each(|input| decode(input));
        }
        for (target, json, decode) in OF_KINDS {
            for input in corpus(target) {
                let Some((kind, bytes)) = input.split_first() else { continue };
                decode(json, Kind::ALL[usize::from(*kind) % Kind::ALL.len()], bytes);
            }
        }
        corpus("proc").iter().for_each(|input| process(input));
    }
}
