//! A DC/OS service account: what the identity manager is told, and what its token is then used for.

use std::sync::Mutex;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use rcgen::KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A scripted identity manager: answers every login with the token of the moment and keeps what it was told.
struct Identities {
    address: SocketAddr,
    token: Arc<Mutex<String>>,
    logins: Arc<Mutex<Vec<String>>>,
}

impl Identities {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (token, logins) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Vec::new())));
        let (answered, kept) = (Arc::clone(&token), Arc::clone(&logins));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                // The body is the last thing of a request, and one object.
                while !request.ends_with(b"}") {
                    if stream.read_buf(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let body = json!({"token": *answered.lock().unwrap()}).to_string();
                stream.write_all(&answer("200 OK", "Connection: close\r\n", &body)).await.unwrap();
            }
        });
        Self { address, token, logins }
    }

    fn give(&self, token: &str) {
        *self.token.lock().unwrap() = token.to_owned();
    }

    fn logins(&self) -> Vec<String> {
        self.logins.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn w21_a_service_account_logs_in_with_a_signed_token_and_again_when_it_is_refused() {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let identities = Identities::start().await;
    let folder = tempfile::tempdir().unwrap();
    let account = folder.path().join("account.json");
    let endpoint = format!("http://{}/acs/api/v1/auth/login", identities.address);
    let contents = json!({
        "scheme": "RS256", "uid": "watcher", "private_key": key.serialize_pem(), "login_endpoint": endpoint,
    });
    std::fs::write(&account, contents.to_string()).unwrap();
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    member.want_authorization("token=s3cret-one");
    identities.give("s3cret-one");
    let mut config = config(&[&member]);
    config.credentials = Some(Credentials::ServiceAccountFile(account));
    let mut watch = watch(config);
    watch.live().await;

    let logins = identities.logins();
    assert_eq!(logins.len(), 1, "one login for all requests");
    let (head, body) = logins[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /acs/api/v1/auth/login HTTP/1.1\r\n"), "{head}");
    let told: Value = serde_json::from_str(body).unwrap();
    assert_eq!(told["uid"], "watcher");
    let (signed, signature) = told["token"].as_str().unwrap().rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key_raw())
        .verify(signed.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap())
        .expect("signed by the account's key");
    let (kind, claims) = signed.split_once('.').unwrap();
    let read = |part: &str| {
        serde_json::from_slice::<Value>(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
    };
    assert_eq!(read(kind), json!({"alg": "RS256", "typ": "JWT"}));
    let claims = read(claims);
    assert_eq!(claims["uid"], "watcher");
    let expires = claims["exp"].as_u64().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now..=now + 3600).contains(&expires), "{expires} is not soon after {now}");

    // The token has expired. A login so soon after another would be hammering.
    member.want_authorization("token=s3cret-two");
    identities.give("s3cret-two");
    watch.handle.command(Command::Resync);
    let away = watch.freshness("refused", |f| matches!(f, Freshness::Stale { .. })).await;
    assert_eq!(identities.logins().len(), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    watch.live().await;
    assert_eq!(identities.logins().len(), 2);
    let shown =
        format!("{away:?} {:?} {}", watch.handle, serde_json::to_string(&watch.handle.sources()).unwrap());
    assert!(!shown.contains("s3cret") && !shown.contains("PRIVATE"), "{shown}");
}

#[tokio::test]
async fn w21_a_token_that_has_expired_is_replaced_once_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "s3cret-one\n").unwrap();
    let member = Member::start().await;
    member.set_app("/a", &["a.1"]);
    member.want_authorization("token=s3cret-one");
    let mut config = config(&[&member]);
    config.credentials = Some(Credentials::TokenFile(token.clone()));
    let mut watch = watch(config);
    watch.live().await;
    member.want_authorization("token=s3cret-two");
    std::fs::write(&token, "s3cret-two\n").unwrap();
    member.set_app("/a", &["a.1", "a.2"]);
    member.everything().await;
    watch.until("read with the new token", |s| tasks(s, "/a").len() == 2).await;
    member.want_authorization("token=s3cret-three");
    member.everything().await;
    let away = watch.freshness("refused", |f| matches!(f, Freshness::Stale { .. })).await;
    let sources = serde_json::to_string(&watch.handle.sources()).unwrap();
    assert!(sources.contains("\"cause\":\"auth\""), "{sources}");
    for shown in [format!("{away:?}"), sources, format!("{:?}", watch.handle)] {
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    assert_eq!(tasks(&watch.subscriber.latest(), "/a").len(), 2, "it keeps serving");
}
