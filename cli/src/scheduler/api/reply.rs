//! Answers: Marathon's status codes, error texts and headers.
//!
//! Not here: when which one is given.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};
use serde_json::{Value, json};

use super::stream::EventBody;
use crate::scheduler::core::Refusal;
use crate::scheduler::core::operations::Accepted;

pub type Body = Either<Full<Bytes>, EventBody>;

const JSON: &str = "application/json";
const LOCKED: &str = "App is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'.";

/// A complete answer, independent of HTTP's types until it is sent.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
    pub headers: Vec<(HeaderName, String)>,
}

impl Reply {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into(), headers: Vec::new() }
    }

    pub fn json(value: &Value) -> Self {
        Self::new(StatusCode::OK, JSON, value.to_string())
    }

    /// JSON that is text already.
    pub fn json_text(text: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, JSON, text)
    }

    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "text/plain", text)
    }

    pub fn empty(status: StatusCode) -> Self {
        Self::new(status, JSON, "")
    }

    pub fn message(status: StatusCode, message: &str) -> Self {
        Self::json(&json!({"message": message})).with_status(status)
    }

    /// Marathon's `deploymentResult`.
    pub fn accepted(accepted: &Accepted) -> Self {
        Self::json(&json!({"version": accepted.version, "deploymentId": accepted.deployment}))
            .with_deployment(accepted)
    }

    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub fn with_deployment(mut self, accepted: &Accepted) -> Self {
        let name = HeaderName::from_static("marathon-deployment-id");
        self.headers.push((name, accepted.deployment.clone()));
        self
    }

    pub fn with_location(mut self, location: String) -> Self {
        self.headers.push((LOCATION, location));
        self
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Either::Left(Full::new(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// The sentence of a refusal, for events and logs.
pub fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Invalid(found) | Refusal::BadJson(found) => {
            let one = |e: &crate::scheduler::app::fields::FieldError| {
                format!("{}: {}", e.path, e.errors.join(", "))
            };
            found.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        Refusal::AppExists(id) => format!("An app with id [{id}] already exists."),
        Refusal::PodExists(id) => format!("A pod with id [{id}] already exists."),
        Refusal::UnknownPod(id) => format!("pod with id {id} does not exist"),
        Refusal::UnknownGroupVersion(id, version) => {
            format!("Group '{id}' does not exist in version {version}")
        }
        Refusal::UnknownApp(id) => format!("App '{id}' does not exist"),
        Refusal::UnknownGroup(id) => format!("Group '{id}' does not exist"),
        Refusal::PathIsApp(id) => format!("An app with the path {id} already exists."),
        Refusal::GroupExists(id) => format!("Group {id} is already created. Use PUT to change this group."),
        Refusal::UnknownVersion(id, version) => format!("App '{id}' does not exist in version {version}"),
        Refusal::BadTimestamp(text) => {
            format!("Invalid timestamp provided '{text}'. Expecting ISO-8601 datetime string.")
        }
        Refusal::UnknownTask(id) => format!("Task '{id}' does not exist"),
        Refusal::BadTaskId(id) => {
            format!("Invalid task id '{id}'. [taskId {id} no valid identifier (of class java.lang.String)]")
        }
        Refusal::UnknownDeployment(id) => format!("DeploymentPlan {id} does not exist"),
        Refusal::NotQueued(id) => format!("Application {id} not found in tasks queue."),
        Refusal::Locked(_) => LOCKED.into(),
        Refusal::TooManyDeployments => "Max number (100) of running deployments exceeded".into(),
        Refusal::Unprocessable(message) | Refusal::BadRequest(message) => message.clone(),
        Refusal::Stopping => "The scheduler is stopping".into(),
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let message = reason(&refusal);
        let status = match &refusal {
            Refusal::Invalid(details) => {
                return Reply::json(&json!({"message": "Object is not valid", "details": details}))
                    .with_status(StatusCode::UNPROCESSABLE_ENTITY);
            }
            Refusal::BadJson(details) => {
                return Reply::json(&json!({"message": "Invalid JSON", "details": details}))
                    .with_status(StatusCode::UNPROCESSABLE_ENTITY);
            }
            Refusal::Locked(deployments) => {
                let ids: Vec<Value> = deployments.iter().map(|id| json!({"id": id})).collect();
                return Reply::json(&json!({"message": message, "deployments": ids}))
                    .with_status(StatusCode::CONFLICT);
            }
            Refusal::AppExists(_)
            | Refusal::PodExists(_)
            | Refusal::PathIsApp(_)
            | Refusal::GroupExists(_) => StatusCode::CONFLICT,
            Refusal::UnknownApp(_)
            | Refusal::UnknownPod(_)
            | Refusal::UnknownGroup(_)
            | Refusal::UnknownGroupVersion(..)
            | Refusal::UnknownVersion(..)
            | Refusal::UnknownTask(_)
            | Refusal::UnknownDeployment(_)
            | Refusal::NotQueued(_) => StatusCode::NOT_FOUND,
            Refusal::BadTimestamp(_) | Refusal::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::BadTaskId(_) | Refusal::BadRequest(_) => StatusCode::BAD_REQUEST,
            Refusal::TooManyDeployments => StatusCode::FORBIDDEN,
            Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Reply::message(status, &message)
    }
}
