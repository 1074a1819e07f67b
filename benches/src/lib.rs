//! Benchmarks of Egret: inputs shared by the criterion benches.
