//! What the `egret` command is made of: the subcommands, and the lab that demo, bench and tests run in.

pub mod bench;
pub mod check;
pub mod confirm;
pub mod demo;
pub mod detach;
pub mod doctor;
pub mod lab;
pub mod run;
pub mod status;
