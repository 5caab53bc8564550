//! Apps change while connections come: nobody notices. The figure that is asked for is `benches/changes.rs`'s.

use tests::churn::Churn;

use crate::PROGRAM;

#[tokio::test]
async fn changes_of_apps_cost_no_connection() -> anyhow::Result<()> {
    let churn = Churn { n_apps: 20, n_changes: 100, changes_per_sec: 50, connections_per_sec: 300 };
    let outcome = churn.run(PROGRAM).await?;
    assert_eq!(outcome.n_failed(), 0, "{:?}", outcome.failures);
    assert!(outcome.n_ok >= 300, "{outcome:?}");
    assert!(
        outcome.n_applied >= 30,
        "changes that come close together may be applied as one: {}",
        outcome.n_applied
    );
    Ok(())
}
