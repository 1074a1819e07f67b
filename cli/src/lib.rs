//! What the `egret` command is made of.

pub mod check;
