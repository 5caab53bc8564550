//! Rows as a page for people, in the shape of HAProxy's own.
//!
//! No script, no style from elsewhere; names come from apps and are escaped by the template.

use askama::Template;

use super::fields::{Column, Kind, Row};

#[derive(Template)]
#[template(path = "haproxy.html")]
struct Page {
    proxies: Vec<Proxy>,
}

struct Proxy {
    name: String,
    kind: Kind,
    /// Servers before their backend, as in the rows.
    rows: Vec<PageRow>,
    reasons: String,
}

struct PageRow {
    name: String,
    /// Of the page's style.
    class: &'static str,
    cells: Vec<String>,
}

impl PageRow {
    fn new(row: &Row) -> Self {
        use Column::{
            act, bin, bout, cli_abrt, dcon, downtime, dreq, econ, ereq, eresp, hrsp_2xx, hrsp_3xx, hrsp_4xx,
            hrsp_5xx, lastchg, lastsess, qcur, qlimit, qmax, rate, rate_max, req_tot, rtime, scur, slim,
            smax, srv_abrt, status, stot, wredis, wretr,
        };
        // In the order of the page's columns.
        let columns = [
            status, lastchg, act, qcur, qmax, qlimit, scur, smax, slim, stot, lastsess, rate, rate_max,
            req_tot, rtime, hrsp_2xx, hrsp_3xx, hrsp_4xx, hrsp_5xx, bin, bout, dreq, dcon, ereq, econ, eresp,
            cli_abrt, srv_abrt, wretr, wredis, downtime,
        ];
        Self {
            name: match row.kind {
                Kind::Frontend => "Frontend".to_owned(),
                Kind::Backend => "Backend".to_owned(),
                Kind::Server => row.text(Column::svname),
            },
            class: match (row.kind, row.text(status).as_str()) {
                (Kind::Frontend, _) => "frontend",
                (_, "DOWN") => "down",
                (_, "DRAIN" | "MAINT") => "drain",
                (Kind::Backend, _) => "backend",
                (Kind::Server, "no check") => "unchecked",
                (Kind::Server, _) => "up",
            },
            cells: columns.into_iter().map(|column| row.text(column)).collect(),
        }
    }
}

pub fn page(rows: &[Row]) -> String {
    let mut proxies: Vec<Proxy> = Vec::new();
    for row in rows {
        let name = row.text(Column::pxname);
        // A frontend and a backend of one name are two tables, as in HAProxy.
        match proxies.last_mut() {
            Some(proxy)
                if proxy.name == name && proxy.kind != Kind::Frontend && row.kind != Kind::Frontend =>
            {
                proxy.rows.push(PageRow::new(row));
                // The backend's, which comes after its servers.
                proxy.reasons.clone_from(&row.reasons);
            }
            _ => {
                let (rows, reasons) = (vec![PageRow::new(row)], row.reasons.clone());
                proxies.push(Proxy { name, kind: row.kind, rows, reasons });
            }
        }
    }
    // The template only writes to a string.
    Page { proxies }.render().unwrap_or_default()
}
