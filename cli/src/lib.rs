//! What the `egret` command is made of: the lab and the demo.

pub mod demo;
pub mod lab;
