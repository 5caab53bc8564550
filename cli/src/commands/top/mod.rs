//! `waymark top`: a live view of instances, VIPs and changes; without a terminal one frame of it.
//!
//! It reads what the stats address says, once a second and from its event stream; `view` lays it out.

mod view;

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::widgets::Widget;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use self::view::{Order, View};
use super::stats::StatsClient;
use super::status::{self, EventStream};
use crate::args::ListArgs;
use crate::failure::Failure;
use crate::output;

const INTERVAL: Duration = Duration::from_secs(1);
/// Before the event stream is opened again.
const REOPEN: Duration = Duration::from_secs(2);
/// Changes that are kept for the lowest pane.
const N_CHANGES: usize = 200;
/// Key presses that wait for the screen; more than that are not read from the terminal yet.
const N_KEYS: usize = 16;
/// Columns of a frame that goes to no terminal.
const PLAIN_WIDTH: u16 = 160;

pub async fn run(args: &ListArgs) -> Result<(), Failure> {
    let client = StatsClient::new(&args.stats)?;
    let now = Now::read(&client).await?;
    if args.json {
        return output::print_json(
            &json!({ "status": now.status, "apps": now.apps["apps"], "vips": now.vips["vips"] }),
        );
    }
    let view = View::new(args.stats.stats.to_string(), now);
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return output::print(&plain(&view));
    }
    let mut terminal =
        ratatui::try_init().map_err(|e| Failure::chain("cannot take over the terminal", &e))?;
    let ended = live(&mut terminal, &client, view).await;
    ratatui::restore();
    ended
}

/// What one look at the stats address showed.
#[derive(Debug)]
pub struct Now {
    status: Value,
    apps: Value,
    vips: Value,
}

impl Now {
    async fn read(client: &StatsClient) -> Result<Self, Failure> {
        let (status, apps, vips) =
            tokio::try_join!(client.get("api/status"), client.get("api/apps"), client.get("api/vips"))?;
        Ok(Self { status, apps, vips })
    }
}

async fn live(terminal: &mut DefaultTerminal, client: &StatsClient, mut view: View) -> Result<(), Failure> {
    let mut keys = keys();
    let (changes_to, mut changes) = mpsc::channel(N_CHANGES);
    let follow = follow_changes(client, &changes_to);
    tokio::pin!(follow);
    let mut ticks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal
            .draw(|frame| frame.render_widget(&view, frame.area()))
            .map_err(|e| Failure::chain("cannot draw on the terminal", &e))?;
        tokio::select! {
            _ = ticks.tick() => view.show(Now::read(client).await),
            Some(change) = changes.recv() => view.changed(change),
            () = &mut follow => {}
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if ends(key) {
                        return Ok(());
                    }
                    obey(&mut view, key);
                }
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
        || (key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL))
}

fn obey(view: &mut View, key: KeyEvent) {
    match key.code {
        KeyCode::Down => view.scroll(1),
        KeyCode::Up => view.scroll(-1),
        KeyCode::PageDown => view.scroll(10),
        KeyCode::PageUp => view.scroll(-10),
        KeyCode::Char('r') => view.sort(Order::Rate),
        KeyCode::Char('a') => view.sort(Order::App),
        _ => {}
    }
}

/// What is typed, and changes of the terminal's size. Its thread ends with the process or when nobody reads.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(N_KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Hands on the changes for ever; what stands in between when the stream breaks off is missing, and the next look at
/// the state shows its result.
async fn follow_changes(client: &StatsClient, to: &mpsc::Sender<String>) {
    loop {
        if let Ok(mut events) = EventStream::open(client).await {
            while let Ok(Some(data)) = events.next().await {
                if to.send(status::one_line(&data)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(REOPEN).await;
    }
}

/// The whole view as lines of text.
fn plain(view: &View) -> String {
    let area = Rect::new(0, 0, PLAIN_WIDTH, view.full_height());
    let mut buffer = Buffer::empty(area);
    view.render(area, &mut buffer);
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(PLAIN_WIDTH)) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
