//! The values of secrets: files below the state's `secrets` folder, named as a secret's `source`. A cluster asks
//! its secret store instead.
//!
//! Not here: which variables want one (`app::EnvValue`).

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::scheduler::app::{EnvValue, Secret};

/// The variables with their values. Errors name the variable and the file that is missing.
pub async fn resolve(
    env: &BTreeMap<String, EnvValue>,
    secrets: &BTreeMap<String, Secret>,
    folder: &Path,
) -> Result<Vec<(String, String)>, String> {
    let mut resolved = Vec::with_capacity(env.len());
    for (key, value) in env {
        let text = match value {
            EnvValue::Text(text) => text.clone(),
            EnvValue::Secret { secret } => {
                let source = secrets.get(secret).map(|secret| secret.source.as_str());
                let source = source.ok_or_else(|| format!("{key}: there is no secret '{secret}'"))?;
                read(folder, source).await.map_err(|why| format!("{key}: secret '{secret}': {why}"))?
            }
        };
        resolved.push((key.clone(), text));
    }
    Ok(resolved)
}

async fn read(folder: &Path, source: &str) -> Result<String, String> {
    let relative = Path::new(source.trim_start_matches('/'));
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("'{source}' is no path"));
    }
    let file = folder.join(relative);
    let text =
        tokio::fs::read_to_string(&file).await.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text.strip_suffix('\n').map_or(text.clone(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_come_from_files() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("db")).expect("writable");
        std::fs::write(dir.path().join("db/password"), "s3cret\n").expect("writable");
        let secret = |source: &str| BTreeMap::from([("s".to_owned(), Secret { source: source.into() })]);
        let env = BTreeMap::from([
            ("A".to_owned(), EnvValue::Text("1".into())),
            ("B".to_owned(), EnvValue::Secret { secret: "s".into() }),
        ]);
        let resolved = resolve(&env, &secret("/db/password"), dir.path()).await;
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(resolved, Ok(vec![pair("A", "1"), pair("B", "s3cret")]));
        for bad in ["/db/none", "/../x", ""] {
            let refused = resolve(&env, &secret(bad), dir.path()).await.expect_err(bad);
            assert!(refused.starts_with("B: secret 's': "), "{refused}");
        }
    }
}
