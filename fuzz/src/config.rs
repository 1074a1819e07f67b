//! Any text as a configuration file.

use engine::config::{Config, Level};
use engine::plan::Plan;
use engine::world::{Arm, host_for};

/// Parses, explains and plans any text. Every answer must hold what it promises.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let config = match Config::parse("egret.toml", &text) {
        Ok(config) => config,
        Err(error) => {
            let wrong = |level| level == Level::Error;
            assert!(error.problems.iter().any(|problem| wrong(problem.level)));
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(!config.internal.is_empty());
    let external = config
        .interfaces
        .iter()
        .filter(|interface| interface.role.is_external());
    assert_eq!(external.count(), 1);
    assert!(
        config
            .advice
            .iter()
            .all(|problem| problem.level != Level::Error)
    );
    assert!(!config.settings().is_empty());

    let internal: Vec<_> = config.internal.iter().map(|prefix| prefix.value).collect();
    let arms: Vec<Arm> = config
        .interfaces
        .iter()
        .map(|i| Arm::of(i.role, &internal))
        .collect();
    match Plan::make(&config, &host_for(&config, &arms)) {
        Ok(plan) => {
            assert_eq!(plan.interfaces.len(), config.interfaces.len());
            assert!(plan.policy.addresses.len() <= usize::from(plan.addresses_max));
            assert!(plan.workers > 0 && plan.sessions_max > 0);
        }
        Err(problems) => assert_eq!(problems[0].level, Level::Error),
    }
}
