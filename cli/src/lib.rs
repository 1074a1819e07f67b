//! What the `egret` command is made of: the lab and the demo.

pub mod lab;
