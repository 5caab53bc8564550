//! What is kept is read back whole or refused with a reason.

use super::*;
use crate::catalog::{AppUpdate, Holding};

fn apps() -> Apps {
    let names = ["/a", "/b/c"];
    let mut held = Holding::default();
    for name in names {
        let json = serde_json::json!({
            "id": name, "version": "v1", "labels": {"HAPROXY_GROUP": "x"}, "networks": [{"mode": "host"}],
            "portDefinitions": [{"port": 10000, "labels": {"VIP_0": format!("{name}:80"), "VIP_1": "1.2.3.4:5"}}],
            "healthChecks": [{"protocol": "HTTP", "path": "/x"}],
            "tasks": [{"id": format!("{name}.1"), "host": "10.0.0.1", "state": "TASK_RUNNING", "ports": [31000],
                       "startedAt": "2026-01-01T00:00:00.000Z", "healthCheckResults": [{"alive": true}]}],
        });
        let context = crate::sources::marathon::translate::Context {
            framework: "marathon",
            resolve: &|_| crate::sources::marathon::translate::Resolved::Failed,
            previous: None,
        };
        let translated = crate::sources::marathon::translate::app(&json.to_string(), &context).unwrap();
        let update: AppUpdate = translated.update;
        assert!(update.problems.is_empty(), "{update:?}");
        held.replace(update);
    }
    held.apps().clone()
}

#[test]
fn what_was_saved_is_loaded_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/apps");
    assert!(load(&path, "m").unwrap().is_none());
    save(&path, "m", "dev", &Apps::new()).unwrap();
    assert!(load(&path, "m").unwrap().unwrap().apps.is_empty());
    save(&path, "m", "dev", &apps()).unwrap();
    let kept = load(&path, "m").unwrap().unwrap();
    assert_eq!(kept.framework, "dev");
    assert!(kept.apps.iter().eq(apps().values()), "{:?}", kept.apps);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
}

#[test]
fn w35_damaged_foreign_and_old_files_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("apps");
    save(&path, "m", "dev", &apps()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let with =
        |from: &str, to: &str| String::from_utf8(good.clone()).unwrap().replacen(from, to, 1).into_bytes();
    let seconds = unix_seconds();
    let aged = |hours: u64| {
        // The checksum covers the age, so an aged file is written as such.
        let head = Head {
            what: MAGIC.into(),
            format: FORMAT,
            source: "m".into(),
            framework: "dev".into(),
            saved_unix_seconds: seconds - hours * 3600,
        };
        write(Vec::new(), &head, &apps()).unwrap()
    };
    assert!(read(&aged(23), "m").is_ok_and(|kept| kept.age >= Duration::from_secs(23 * 3600)));
    for (bytes, source, expect) in [
        (aged(25), "m", "the file is 25 hours old"),
        (good.clone(), "other", "the state of the source \"m\""),
        (with("\"format\":2", "\"format\":3"), "m", "format 3"),
        (with("10000", "10001"), "m", "damaged"),
        (with("waymark kept", "somebody's"), "m", "not a kept state"),
        (b"{\"apps\": []}\n".to_vec(), "m", "not a kept state"),
        (vec![0; 4096], "m", "not a kept state"),
        (Vec::new(), "m", "not a kept state"),
    ] {
        let error = read(&bytes, source).err().expect(expect).to_string();
        assert!(error.contains(expect), "{error}");
    }
    for cut in 1..good.len() {
        assert!(read(&good[..cut], "m").is_err(), "cut at {cut}");
    }
    assert!(matches!(load(folder.path(), "m"), Err(LoadError::Io(_))));
}

#[test]
fn w35_a_disk_that_cannot_be_written_leaves_the_old_file_and_no_draft() {
    let folder = tempfile::tempdir().unwrap();
    assert!(save(Path::new("/proc/waymark/apps"), "m", "dev", &apps()).is_err(), "read-only");
    // A device that is always full.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let head = Head {
        what: MAGIC.into(),
        format: FORMAT,
        source: "m".into(),
        framework: "dev".into(),
        saved_unix_seconds: 0,
    };
    let error = write(full, &head, &apps()).expect_err("the device is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let path = folder.path().join("apps");
    save(&path, "m", "dev", &apps()).unwrap();
    // Where the draft would go is a folder: nothing can be written there.
    std::fs::create_dir(folder.path().join("apps.new")).unwrap();
    assert!(save(&path, "m", "dev", &Apps::new()).is_err());
    assert_eq!(load(&path, "m").unwrap().unwrap().apps.len(), 2);
}
