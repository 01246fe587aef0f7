//! The IPVS decoders as an entry point for fuzz targets.

use super::*;

/// A real server as the kernel encodes it; `more` adds attributes.
pub(super) fn dumped(real: &RealServer, connections: &Connections, more: &mut dyn FnMut(&mut Request)) -> Vec<u8> {
    let mut request = Request::new(0, 0, &genlmsghdr(0));
    more(&mut request);
    request.nested(IPVS_CMD_ATTR_DEST, |dest| {
        more(dest);
        destination(dest, real.address);
        for (kind, number) in [
            (IPVS_DEST_ATTR_FWD_METHOD, forward_number(real.forward)),
            (IPVS_DEST_ATTR_WEIGHT, real.weight),
            (IPVS_DEST_ATTR_ACTIVE_CONNS, connections.active),
            (IPVS_DEST_ATTR_INACT_CONNS, connections.inactive),
            (IPVS_DEST_ATTR_PERSIST_CONNS, connections.persistent),
        ] {
            dest.attribute(kind, &number.to_ne_bytes());
        }
    });
    request.into_attributes()
}

fn after_header(bytes: &[u8]) -> Attributes<'_> {
    Attributes::new(bytes.get(HEADER..).unwrap_or_default())
}

/// Decodes a message as a virtual server, a real server, timeouts and a version.
///
/// # Panics
/// If a server differs after encoding and decoding it again.
pub(in crate::kernel) fn fuzz(payload: &[u8]) {
    let message = after_header(payload);
    let _ = (read_info(message), read_timeouts(message), real_statistics(message));
    if let Some(server) = virtual_server(message) {
        let again = request(20, &Operation::AddVirtual(server)).into_attributes();
        assert_eq!(virtual_server(after_header(&again)), Some(server));
        assert!(!server.to_string().is_empty());
    }
    for family in IpFamily::ALL {
        let _ = listed(message, family);
        if let Some((real, connections)) = real_server(message, family) {
            let again = dumped(&real, &connections, &mut |_| ());
            assert_eq!(real_server(after_header(&again), family), Some((real, connections)));
            assert!(!real.to_string().is_empty());
        }
    }
}
