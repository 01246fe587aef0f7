//! Lists what the kernel runs at a hook, in its order (`nfnetlink_hook`, Linux 5.14 and later).
//!
//! Of functions with equal priority the one that was registered last runs first, and neither tables nor chains tell when
//! that was. Chains of type `nat` are behind one function: only newer kernels list them.

use super::read::NftReader;
use super::uapi::*;
use super::{NftError, decode, presence};
use crate::IpFamily;
use crate::kernel::netlink::{Attributes, Request, nfgenmsg, nfnetlink};
use crate::nft::Hook;
use crate::nft::ruleset::{HookFunction, Scope, TableId};

impl NftReader {
    /// Lists the functions at a hook in the order in which packets meet them; `None` if the kernel has no such list.
    ///
    /// # Errors
    /// If the kernel refuses, for example for want of rights.
    pub fn hook_functions(&mut self, hook: Hook) -> Result<Option<Vec<HookFunction>>, NftError> {
        let family = self.family;
        let mut request = Request::new(nfnetlink(NFNL_SUBSYS_HOOK, NFNL_MSG_HOOK_GET), 0, &nfgenmsg(family.nfproto()));
        request.attribute(NFNLA_HOOK_HOOKNUM, &(hook as u32).to_be_bytes());
        match self.collect(&request, |known: &mut Vec<_>, attributes| known.extend(function(family, attributes))) {
            Err(NftError::Netlink(error)) if error.raw_os_error().is_some_and(presence::is_absence) => Ok(None),
            listed => listed.map(Some),
        }
    }
}

/// Decodes one function; `None` if it has no name or priority.
pub(super) fn function(family: IpFamily, attributes: Attributes<'_>) -> Option<HookFunction> {
    let info = attributes.nest(NFNLA_HOOK_CHAIN_INFO);
    let info = info.filter(|info| info.be32(NFNLA_HOOK_INFO_TYPE) == Some(NFNL_HOOK_TYPE_NFTABLES));
    let chain = info.and_then(|info| info.nest(NFNLA_HOOK_INFO_DESC)).and_then(|chain| {
        let [number] = chain.find_array(NFNLA_CHAIN_FAMILY)?;
        let scope = [Scope::Family(family), Scope::Both].into_iter().find(|scope| scope.nfproto() == number)?;
        let id = TableId { scope, name: decode::name(chain, NFNLA_CHAIN_TABLE)? };
        Some((id, decode::name(chain, NFNLA_CHAIN_NAME)?))
    });
    let priority = attributes.be32(NFNLA_HOOK_PRIORITY)?.cast_signed();
    Some(HookFunction { priority, name: decode::name(attributes, NFNLA_HOOK_FUNCTION_NAME)?, chain })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(fill: impl FnOnce(&mut Request)) -> Option<HookFunction> {
        let mut request = Request::new(0, 0, &[]);
        fill(&mut request);
        function(IpFamily::V4, Attributes::new(&request.into_attributes()))
    }

    /// The attributes of a base chain: the type and the family of its table.
    fn base_chain(request: &mut Request, kind: u32, family: u8) {
        request.text(NFNLA_HOOK_FUNCTION_NAME, "nft_do_chain_inet");
        request.attribute(NFNLA_HOOK_PRIORITY, &(-5_i32).to_be_bytes());
        request.nested(NFNLA_HOOK_CHAIN_INFO, |info| {
            info.nested(NFNLA_HOOK_INFO_DESC, |chain| {
                chain.text(NFNLA_CHAIN_TABLE, "t").text(NFNLA_CHAIN_NAME, "c").attribute(NFNLA_CHAIN_FAMILY, &[family]);
            });
            info.attribute(NFNLA_HOOK_INFO_TYPE, &kind.to_be_bytes());
        });
    }

    #[test]
    fn base_chain_is_decoded_with_its_table() {
        let found = decoded(|request| base_chain(request, NFNL_HOOK_TYPE_NFTABLES, 1)).expect("a function");
        let id = TableId { scope: Scope::Both, name: "t".into() };
        assert_eq!(found.chain, Some((id, "c".into())));
        assert_eq!((found.priority, &*found.name), (-5, "nft_do_chain_inet"));
        let found = decoded(|request| base_chain(request, NFNL_HOOK_TYPE_NFTABLES, 2)).expect("a function");
        assert_eq!(found.chain, Some((TableId::of(IpFamily::V4, "t"), "c".into())));
    }

    #[test]
    fn what_is_no_base_chain_of_the_family_has_no_chain() {
        // A flow table, and a table of family ip6.
        for (kind, family) in [(3, 1), (NFNL_HOOK_TYPE_NFTABLES, 10)] {
            let found = decoded(|request| base_chain(request, kind, family)).expect("a function");
            assert_eq!(found.chain, None, "{kind} {family}");
        }
        assert_eq!(decoded(|request| _ = request.text(NFNLA_HOOK_FUNCTION_NAME, "nf_nat_ipv4_fn")), None);
    }
}
