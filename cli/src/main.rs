//! `egret`: the command line of the gateway.
fn main() {}
