//! What was counted, and how it is shown: HAProxy's CSV, JSON and page, Prometheus text, and our own views.
//!
//! The request path only adds to a [`Series`]; everything else is worked out when somebody asks.

mod csv;
mod fields;
mod histogram;
mod metrics;
mod page;
mod refusals;
mod series;
mod stages;
mod views;

pub(crate) use csv::{csv, json};
pub use fields::Servers;
pub(crate) use fields::rows;
pub(crate) use metrics::metrics;
pub(crate) use page::page;
pub(crate) use refusals::own_metrics;
pub use series::{ResponseClass, Series, Session, Shard, Totals, Waiting};
pub use stages::Stage;
pub use views::{BackendView, RouteFrom, RouteView, ServerView};
pub(crate) use views::{app_map, backends, routes, vhost_map};
