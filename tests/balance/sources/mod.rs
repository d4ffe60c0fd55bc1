//! Sources of members.

mod proxies;
