//! What is listened on: the fixed addresses from the start, a port for each service as tables come and go.
//!
//! Sockets are bound here, on the control side, one for each worker, so that a bind error has one place and a port
//! serves from the moment it is bound. Workers accept and close them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use event_watcher::catalog::Problem;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::mpsc;

use crate::error::BindError;
use crate::proxy::Entry;
use crate::stats::Series;
use crate::table::Table;
use crate::worker::{Command, Listener};

const BACKLOG: i32 = 4096;

#[derive(Debug)]
pub(crate) struct Listeners {
    service_address: IpAddr,
    workers: Vec<mpsc::Sender<Command>>,
    /// With the address that each is open on.
    service_ports: BTreeMap<u16, IpAddr>,
    failed: BTreeMap<u16, BindError>,
}

impl Listeners {
    pub(crate) fn new(service_address: IpAddr, workers: Vec<mpsc::Sender<Command>>) -> Self {
        Self { service_address, workers, service_ports: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Binds an address that does not come from the scheduler.
    pub(crate) fn bind(
        &self,
        address: SocketAddr,
        purpose: &'static str,
    ) -> Result<(SocketAddr, Vec<TcpListener>), BindError> {
        bind(address, self.workers.len()).map_err(|source| BindError::new(address, purpose, source))
    }

    /// Gives each worker its socket.
    pub(crate) async fn open(
        &self,
        entry: Entry,
        port: u16,
        sockets: Vec<TcpListener>,
        series: &Arc<Series>,
    ) {
        let n_connections = Arc::default();
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let n_connections = Arc::clone(&n_connections);
            let listener = Listener { entry, socket, port, series: Arc::clone(series), n_connections };
            // A worker that is gone has been cancelled, and so will this task be.
            let _ = worker.send(Command::Listen(listener)).await;
        }
    }

    /// Opens and closes service ports so that they are those of the table; a port that could not be bound before is
    /// tried again.
    pub(crate) async fn follow(&mut self, table: &Table) {
        let wanted: BTreeMap<u16, usize> = table.routes.ports().collect();
        self.failed.retain(|port, _| wanted.contains_key(port));
        let address_of =
            |backend: usize| table.backends[backend].labels.bind_address.unwrap_or(self.service_address);
        let stays = |port: &u16, address: &IpAddr| {
            wanted.get(port).is_some_and(|backend| address_of(*backend) == *address)
        };
        let gone: Vec<u16> =
            self.service_ports.iter().filter(|(p, a)| !stays(p, a)).map(|(port, _)| *port).collect();
        for port in gone {
            self.service_ports.remove(&port);
            for worker in &self.workers {
                let _ = worker.send(Command::Close(Entry::ServicePort(port))).await;
            }
        }
        for (port, backend) in wanted {
            if self.service_ports.contains_key(&port) {
                continue;
            }
            let address = SocketAddr::new(address_of(backend), port);
            match bind(address, self.workers.len()) {
                Ok((_, sockets)) => {
                    self.failed.remove(&port);
                    self.service_ports.insert(port, address.ip());
                    let series = &table.backends[backend].frontend;
                    self.open(Entry::ServicePort(port), port, sockets, series).await;
                }
                Err(source) => {
                    let purpose = format!("service port {port}");
                    self.failed.insert(port, BindError::new(address, purpose, source));
                }
            }
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    pub(crate) fn problems(&self, table: &Table) -> Vec<Problem> {
        self.failed
            .iter()
            .map(|(port, error)| Problem {
                app: table.routes.of_port(*port).map(|i| table.backends[i].service.app.clone()),
                at: format!("service port {port}"),
                what: format!("cannot listen on {}: {}", error.address, error.source),
                hint: error.hint.to_owned(),
            })
            .collect()
    }
}

/// One socket for each worker, all listening. The kernel spreads connections among them.
fn bind(address: SocketAddr, n: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // SO_REUSEPORT would let a second program of the same user take half of the connections without a word; without
    // it the kernel says that the port is taken.
    let probe = socket(address)?;
    probe.bind(&SockAddr::from(address))?;
    probe.listen(1)?;
    let bound = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let sockets = (0..n.max(1)).map(|_| {
        let socket = socket(bound)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SockAddr::from(bound))?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    });
    Ok((bound, sockets.collect::<io::Result<_>>()?))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // What is accepted inherits both (Linux), so that no connection costs a call more.
    socket.set_tcp_nodelay(true)?;
    l4_vip::addresses::do_not_pace(&socket, address);
    Ok(socket)
}
