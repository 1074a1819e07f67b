pub mod faulty;
pub mod fragments;
pub mod oracle;
pub mod paths;
pub mod scenario;
pub mod unfinished;
