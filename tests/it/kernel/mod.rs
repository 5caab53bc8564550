//! The planes that serve VIPs inside the kernel: each by itself, both by the same measure, and the program with them.

mod agent_down;
mod changes;
mod counts;
mod ebpf;
mod ebpf_adoption;
mod ebpf_flows;
mod ebpf_hosts;
mod ebpf_twin;
mod host;
mod many;
mod moves;
mod nft;
mod nft_adoption;
mod nft_flows;
mod nodes;
mod peers;
mod planes;
mod program;
mod redis;
