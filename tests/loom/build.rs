//! Sets `cfg(loom)` for this crate alone: under RUSTFLAGS tokio and others would want it as well.

fn main() {
    println!("cargo:rustc-cfg=loom");
    println!("cargo:rerun-if-changed=build.rs");
}
