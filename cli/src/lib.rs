//! What the `egret` command is made of: the subcommands, and the lab that demo, bench and tests run in.

pub mod bench;
pub mod check;
pub mod confirm;
pub mod demo;
pub mod detach;
pub mod doctor;
pub mod filters;
pub mod flush;
pub mod lab;
pub mod lookup;
pub mod mappings;
pub mod rows;
pub mod run;
pub mod sessions;
pub mod status;
pub mod target;
