//! Several `waymark dev` that start at the same moment on one machine: each gets a resolver address of its own.
//!
//! Not here: what `waymark exec` does with that address (`exec`).

use std::collections::BTreeSet;

use tests::waymark::Waymark;

use crate::PROGRAM;

#[tokio::test]
async fn each_gets_a_resolver_address_of_its_own() -> anyhow::Result<()> {
    let start = || Waymark::dev(PROGRAM, &["--no-demo", "--simulate"]);
    let (first, second, third, fourth) = tokio::try_join!(start(), start(), start(), start())?;
    let mut resolvers = Vec::new();
    for waymark in [first, second, third, fourth] {
        let status = waymark.stats("/api/status").await?.json()?;
        resolvers.extend(status["addresses"]["dns53"].as_str().map(str::to_owned));
        assert_eq!(waymark.stop().await?, Some(0));
    }
    let different: BTreeSet<&String> = resolvers.iter().collect();
    assert_eq!(different.len(), resolvers.len(), "{resolvers:?}");
    // SAFETY: geteuid(2) has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        assert!(!resolvers.is_empty(), "none has port 53");
    }
    Ok(())
}
