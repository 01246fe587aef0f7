//! Numbers of the kernel's interface: `linux/netfilter/nf_tables.h`, `nfnetlink.h` and `nfnetlink_hook.h`.
//!
//! Named as there. Shared by all that speak to nf_tables: tables of any program, iptables' rules in it, and rule counters.

// Subsystems and messages of nfnetlink.
pub(in crate::kernel) const NFNL_SUBSYS_NFTABLES: u8 = 10;
pub(in crate::kernel) const NFNL_SUBSYS_HOOK: u8 = 12;
pub(in crate::kernel) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(in crate::kernel) const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(in crate::kernel) const NFNL_BATCH_GENID: u16 = 1;
pub(in crate::kernel) const NFNL_MSG_HOOK_GET: u8 = 0;

// Families beside those of IP.
pub(in crate::kernel) const NFPROTO_INET: u8 = 1;
pub(in crate::kernel) const NFPROTO_ARP: u8 = 3;
pub(in crate::kernel) const NFPROTO_BRIDGE: u8 = 7;

// Messages of nf_tables.
pub(in crate::kernel) const NFT_MSG_NEWTABLE: u8 = 0;
pub(in crate::kernel) const NFT_MSG_GETTABLE: u8 = 1;
pub(in crate::kernel) const NFT_MSG_DELTABLE: u8 = 2;
pub(in crate::kernel) const NFT_MSG_NEWCHAIN: u8 = 3;
pub(in crate::kernel) const NFT_MSG_GETCHAIN: u8 = 4;
pub(in crate::kernel) const NFT_MSG_DELCHAIN: u8 = 5;
pub(in crate::kernel) const NFT_MSG_NEWRULE: u8 = 6;
pub(in crate::kernel) const NFT_MSG_GETRULE: u8 = 7;
pub(in crate::kernel) const NFT_MSG_DELRULE: u8 = 8;
pub(in crate::kernel) const NFT_MSG_NEWSET: u8 = 9;
pub(in crate::kernel) const NFT_MSG_GETSET: u8 = 10;
pub(in crate::kernel) const NFT_MSG_DELSET: u8 = 11;
pub(in crate::kernel) const NFT_MSG_NEWSETELEM: u8 = 12;
pub(in crate::kernel) const NFT_MSG_GETSETELEM: u8 = 13;
pub(in crate::kernel) const NFT_MSG_DELSETELEM: u8 = 14;
pub(in crate::kernel) const NFT_MSG_GETGEN: u8 = 16;
pub(in crate::kernel) const NFT_MSG_NEWOBJ: u8 = 18;
pub(in crate::kernel) const NFT_MSG_DELOBJ: u8 = 20;
#[cfg(feature = "testing")]
pub(in crate::kernel) const NFT_MSG_NEWGEN: u8 = 15;

// Attributes of tables.
pub(in crate::kernel) const NFTA_TABLE_FLAGS: u16 = 2;
pub(in crate::kernel) const NFTA_TABLE_USE: u16 = 3;
pub(in crate::kernel) const NFTA_TABLE_HANDLE: u16 = 4;
pub(in crate::kernel) const NFTA_TABLE_USERDATA: u16 = 6;
pub(in crate::kernel) const NFTA_TABLE_OWNER: u16 = 7;
pub(in crate::kernel) const NFTA_TABLE_NAME: u16 = 1;

// Attributes of chains and of their hooks.
pub(in crate::kernel) const NFTA_CHAIN_HANDLE: u16 = 2;
pub(in crate::kernel) const NFTA_CHAIN_NAME: u16 = 3;
pub(in crate::kernel) const NFTA_CHAIN_HOOK: u16 = 4;
pub(in crate::kernel) const NFTA_CHAIN_POLICY: u16 = 5;
pub(in crate::kernel) const NFTA_CHAIN_TYPE: u16 = 7;
pub(in crate::kernel) const NFTA_CHAIN_COUNTERS: u16 = 8;
pub(in crate::kernel) const NFTA_CHAIN_USERDATA: u16 = 12;
pub(in crate::kernel) const NFTA_CHAIN_USE: u16 = 6;
pub(in crate::kernel) const NFTA_CHAIN_TABLE: u16 = 1;
pub(in crate::kernel) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(in crate::kernel) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(in crate::kernel) const NFTA_HOOK_DEV: u16 = 3;
pub(in crate::kernel) const NFTA_HOOK_DEVS: u16 = 4;
pub(in crate::kernel) const NFTA_DEVICE_PREFIX: u16 = 2;

// Attributes of rules.
pub(in crate::kernel) const NFTA_RULE_CHAIN: u16 = 2;
pub(in crate::kernel) const NFTA_RULE_HANDLE: u16 = 3;
pub(in crate::kernel) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(in crate::kernel) const NFTA_RULE_USERDATA: u16 = 7;
pub(in crate::kernel) const NFTA_RULE_TABLE: u16 = 1;
pub(in crate::kernel) const NFTA_RULE_POSITION: u16 = 6;
/// Names a rule within its batch.
pub(in crate::kernel) const NFTA_RULE_ID: u16 = 9;
pub(in crate::kernel) const NFTA_RULE_COMPAT: u16 = 5;
pub(in crate::kernel) const NFTA_RULE_COMPAT_PROTO: u16 = 1;
pub(in crate::kernel) const NFTA_RULE_COMPAT_FLAGS: u16 = 2;

// Attributes of sets.
pub(in crate::kernel) const NFTA_SET_NAME: u16 = 2;
pub(in crate::kernel) const NFTA_SET_FLAGS: u16 = 3;
pub(in crate::kernel) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(in crate::kernel) const NFTA_SET_KEY_LEN: u16 = 5;
pub(in crate::kernel) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(in crate::kernel) const NFTA_SET_DATA_LEN: u16 = 7;
pub(in crate::kernel) const NFTA_SET_DESC: u16 = 9;
pub(in crate::kernel) const NFTA_SET_ID: u16 = 10;
pub(in crate::kernel) const NFTA_SET_TIMEOUT: u16 = 11;
pub(in crate::kernel) const NFTA_SET_USERDATA: u16 = 13;
pub(in crate::kernel) const NFTA_SET_EXPR: u16 = 17;
pub(in crate::kernel) const NFTA_SET_EXPRESSIONS: u16 = 18;
pub(in crate::kernel) const NFTA_SET_COUNT: u16 = 20;
pub(in crate::kernel) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(in crate::kernel) const NFTA_SET_DESC_CONCAT: u16 = 2;
pub(in crate::kernel) const NFTA_SET_FIELD_LEN: u16 = 1;

// Attributes of elements.
pub(in crate::kernel) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(in crate::kernel) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(in crate::kernel) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(in crate::kernel) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(in crate::kernel) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(in crate::kernel) const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
pub(in crate::kernel) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub(in crate::kernel) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(in crate::kernel) const NFTA_SET_ELEM_EXPR: u16 = 7;
pub(in crate::kernel) const NFTA_SET_ELEM_KEY_END: u16 = 10;
pub(in crate::kernel) const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;

// Attributes of expressions, values and verdicts.
pub(in crate::kernel) const NFTA_DATA_VALUE: u16 = 1;
pub(in crate::kernel) const NFTA_LIST_ELEM: u16 = 1;
pub(in crate::kernel) const NFTA_EXPR_NAME: u16 = 1;
pub(in crate::kernel) const NFTA_EXPR_DATA: u16 = 2;
pub(in crate::kernel) const NFTA_DATA_VERDICT: u16 = 2;
pub(in crate::kernel) const NFTA_VERDICT_CODE: u16 = 1;
pub(in crate::kernel) const NFTA_VERDICT_CHAIN: u16 = 2;

// Attributes of single expressions.
pub(in crate::kernel) const NFTA_COUNTER_BYTES: u16 = 1;
pub(in crate::kernel) const NFTA_COUNTER_PACKETS: u16 = 2;
pub(in crate::kernel) const NFTA_META_KEY: u16 = 2;
pub(in crate::kernel) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(in crate::kernel) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(in crate::kernel) const NFTA_CMP_OP: u16 = 2;
pub(in crate::kernel) const NFTA_CMP_DATA: u16 = 3;
pub(in crate::kernel) const NFTA_IMMEDIATE_DATA: u16 = 2;

// The generation ID.
pub(in crate::kernel) const NFTA_GEN_ID: u16 = 1;

// Flags of tables, sets and elements.
pub(in crate::kernel) const NFT_TABLE_F_DORMANT: u32 = 1;
pub(in crate::kernel) const NFT_TABLE_F_OWNER: u32 = 2;
pub(in crate::kernel) const NFT_SET_ANONYMOUS: u32 = 0x1;
pub(in crate::kernel) const NFT_SET_INTERVAL: u32 = 0x4;
pub(in crate::kernel) const NFT_SET_MAP: u32 = 0x8;
pub(in crate::kernel) const NFT_SET_TIMEOUT: u32 = 0x10;
pub(in crate::kernel) const NFT_SET_EVAL: u32 = 0x20;
pub(in crate::kernel) const NFT_SET_CONCAT: u32 = 0x80;
pub(in crate::kernel) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub(in crate::kernel) const NFT_SET_ELEM_CATCHALL: u32 = 2;

// Objects.
pub(in crate::kernel) const NFT_OBJECT_COUNTER: u32 = 1;

// Registers and operators.
pub(in crate::kernel) const NFT_REG_VERDICT: u32 = 0;
pub(in crate::kernel) const NFT_REG_1: u32 = 1;
pub(in crate::kernel) const NFT_CMP_EQ: u32 = 0;
pub(in crate::kernel) const NFT_CMP_NEQ: u32 = 1;

// Verdicts.
pub(in crate::kernel) const NF_DROP: i32 = 0;
pub(in crate::kernel) const NF_ACCEPT: i32 = 1;
pub(in crate::kernel) const NFT_CONTINUE: i32 = -1;
pub(in crate::kernel) const NFT_JUMP: i32 = -3;
pub(in crate::kernel) const NFT_GOTO: i32 = -4;
pub(in crate::kernel) const NFT_RETURN: i32 = -5;

// What `meta`, `ct`, `payload`, `fib` and `numgen` load.
pub(in crate::kernel) const NFT_META_MARK: u32 = 3;
pub(in crate::kernel) const NFT_META_PROTOCOL: u32 = 1;
pub(in crate::kernel) const NFT_META_IIF: u32 = 4;
pub(in crate::kernel) const NFT_META_OIF: u32 = 5;
pub(in crate::kernel) const NFT_META_IIFNAME: u32 = 6;
pub(in crate::kernel) const NFT_META_OIFNAME: u32 = 7;
pub(in crate::kernel) const NFT_META_IIFTYPE: u32 = 8;
pub(in crate::kernel) const NFT_META_OIFTYPE: u32 = 9;
pub(in crate::kernel) const NFT_META_NFPROTO: u32 = 15;
pub(in crate::kernel) const NFT_META_L4PROTO: u32 = 16;
pub(in crate::kernel) const NFT_META_PKTTYPE: u32 = 19;
pub(in crate::kernel) const NFT_CT_MARK: u32 = 3;
pub(in crate::kernel) const NFT_CT_STATE: u32 = 0;
pub(in crate::kernel) const NFT_CT_DIRECTION: u32 = 1;
pub(in crate::kernel) const NFT_CT_STATUS: u32 = 2;
pub(in crate::kernel) const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
pub(in crate::kernel) const NFTA_FIB_F_SADDR: u32 = 1;
pub(in crate::kernel) const NFTA_FIB_F_DADDR: u32 = 2;
pub(in crate::kernel) const NFT_NG_INCREMENTAL: u32 = 0;
pub(in crate::kernel) const NFT_NG_RANDOM: u32 = 1;
pub(in crate::kernel) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(in crate::kernel) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;

// Translation and refusal.
pub(in crate::kernel) const NFT_NAT_SNAT: u32 = 0;
pub(in crate::kernel) const NFT_NAT_DNAT: u32 = 1;
pub(in crate::kernel) const NFT_REJECT_ICMP_UNREACH: u32 = 0;
pub(in crate::kernel) const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 0x10;

// Hooks and priorities.
pub(in crate::kernel) const NF_INET_INGRESS: u32 = 5;
pub(in crate::kernel) const NF_IP_PRI_MANGLE: i32 = -150;
pub(in crate::kernel) const NF_IP_PRI_NAT_DST: i32 = -100;
pub(in crate::kernel) const NF_IP_PRI_NAT_SRC: i32 = 100;

// Attributes of functions at a hook (`nfnetlink_hook`).
pub(in crate::kernel) const NFNLA_HOOK_HOOKNUM: u16 = 1;
pub(in crate::kernel) const NFNLA_HOOK_PRIORITY: u16 = 2;
pub(in crate::kernel) const NFNLA_HOOK_FUNCTION_NAME: u16 = 4;
pub(in crate::kernel) const NFNLA_HOOK_CHAIN_INFO: u16 = 6;
pub(in crate::kernel) const NFNLA_HOOK_INFO_DESC: u16 = 1;
pub(in crate::kernel) const NFNLA_HOOK_INFO_TYPE: u16 = 2;
pub(in crate::kernel) const NFNLA_CHAIN_TABLE: u16 = 1;
pub(in crate::kernel) const NFNLA_CHAIN_FAMILY: u16 = 2;
pub(in crate::kernel) const NFNLA_CHAIN_NAME: u16 = 3;
pub(in crate::kernel) const NFNL_HOOK_TYPE_NFTABLES: u32 = 1;

/// The type of values that are verdicts: `NFT_DATA_VERDICT`.
pub(in crate::kernel) const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// Name, revision and structure of `match` and `target` expressions: `NFTA_MATCH_*` and `NFTA_TARGET_*`.
pub(in crate::kernel) const EXTENSION: [u16; 3] = [1, 2, 3];
