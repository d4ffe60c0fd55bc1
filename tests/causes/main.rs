//! Causes: what each is read from, and how it is written into fields.

#[cfg(target_os = "linux")]
mod error_chains;
mod proxy_status;
