//! The two ways that a gateway under test exchanges frames with the kernel: every suite that does
//! not concern one of them runs on both.
#![allow(unused_macros, unused_imports)] // Some test files concern one of them.

use egret_cli::demo::setup::Tuning;

/// How a gateway gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// AF_XDP, in native copy mode.
    Copy,
    /// The tun driver.
    Tun,
}

impl Backend {
    /// As `device.mode` has it.
    pub fn mode(self) -> &'static str {
        match self {
            Backend::Copy => "copy",
            Backend::Tun => "tun",
        }
    }

    /// The demo's configuration with this backend, and these tables of the file beside it.
    pub fn tuning(self, more: &str) -> Tuning {
        Tuning {
            mode: Some(self.mode().to_owned()),
            more: more.to_owned(),
            ..Tuning::default()
        }
    }
}

/// Makes two tests of each line, `NAME::copy` and `NAME::tun`: what follows the name is called with
/// the backend.
macro_rules! on_both_backends {
    ($($(#[$attribute:meta])* $name:ident: $test:expr;)*) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;
            use crate::kernel::backend::Backend;

            #[test]
            fn copy() {
                let test: fn(Backend) = $test;
                test(Backend::Copy);
            }

            #[test]
            fn tun() {
                let test: fn(Backend) = $test;
                test(Backend::Tun);
            }
        }
    )*};
}
pub(crate) use on_both_backends;
