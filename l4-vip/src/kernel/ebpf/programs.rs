//! The programs, one for each socket call: what `tests/ebpf/wm.bpf.c` says in C, in instructions.
//!
//! `connect` and `sendmsg` look a VIP up, pick a backend and put its address in the VIP's place; `recvmsg` and
//! `getpeername` put the VIP back. They keep no state but the maps', and attach nothing.

use std::os::fd::BorrowedFd;

use event_watcher::catalog::VipPool;

use super::asm::{Asm, Helper, If, Label, Op, Reg, Reg::*, Width::*};
use super::layout::{self, affinity, backend, counters, peer, service, slot};
use super::maps::Maps;

/// A socket call that a program runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Also the name of its pin.
    pub name: &'static str,
    /// `enum bpf_attach_type`
    pub attach_type: u32,
    family: Family,
    call: Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Connect,
    SendMsg,
    RecvMsg,
    GetPeerName,
}

const fn hook(name: &'static str, attach_type: u32, family: Family, call: Call) -> Hook {
    Hook { name, attach_type, family, call }
}

/// In the order in which they are attached: what puts VIPs back stands before what takes them away.
pub const HOOKS: [Hook; 8] = [
    hook("getpeername4", 29, Family::V4, Call::GetPeerName),
    hook("getpeername6", 30, Family::V6, Call::GetPeerName),
    hook("recvmsg4", 19, Family::V4, Call::RecvMsg),
    hook("recvmsg6", 20, Family::V6, Call::RecvMsg),
    hook("sendmsg4", 14, Family::V4, Call::SendMsg),
    hook("sendmsg6", 15, Family::V6, Call::SendMsg),
    hook("connect4", 10, Family::V4, Call::Connect),
    hook("connect6", 11, Family::V6, Call::Connect),
];

/// Offsets in `struct bpf_sock_addr`.
mod context {
    pub const IP4: i16 = 4;
    pub const IP6: i16 = 8;
    pub const PORT: i16 = 24;
    pub const PROTOCOL: i16 = 36;
    pub const SOCKET: i16 = 64;
}

/// Offsets in `struct bpf_sock`.
mod socket {
    pub const SOURCE_IP4: i16 = 24;
    pub const SOURCE_IP6: i16 = 28;
}

/// Places on the stack, below the frame pointer.
mod stack {
    /// The VIP: `FrontendKey`.
    pub const VIP: i16 = -24;
    pub const SLOT_KEY: i16 = -32;
    /// The backend's number, or the service's when it refuses.
    pub const ID: i16 = -40;
    pub const FLOW_KEY: i16 = -72;
    pub const REVERSE_KEY: i16 = -104;
    pub const AFFINITY_KEY: i16 = -136;
    pub const AFFINITY: i16 = -152;
}

const PASS: i32 = 1;
const REFUSE: i32 = 0;
/// A change of a service may take away what was read a moment ago; then the service is read again, this often.
const ATTEMPTS: i32 = 4;
/// `BPF_SK_STORAGE_GET_F_CREATE`
const CREATE: i32 = 1;

/// The instructions of the program for `hook`. Everything in `pools` that is no VIP is refused.
pub fn assemble(hook: Hook, maps: &Maps, pools: &[VipPool]) -> Vec<[u8; 8]> {
    let program = Program { asm: Asm::default(), family: hook.family, maps };
    match hook.call {
        Call::Connect | Call::SendMsg => program.forward(hook.call, pools),
        Call::RecvMsg | Call::GetPeerName => program.reverse(hook.call),
    }
}

struct Program<'a> {
    asm: Asm,
    family: Family,
    maps: &'a Maps,
}

impl Program<'_> {
    /// R6: context, R7: service, R8: backend, R9: attempts.
    fn forward(mut self, call: Call, pools: &[VipPool]) -> Vec<[u8; 8]> {
        let (pass, miss, refuse, refuse_uncounted) = self.four_labels();
        let (again, pick, picked, found) = self.four_labels();
        let next_attempt = self.asm.label();
        self.asm.mov(R6, R1);
        match call {
            Call::Connect => {
                let known = self.asm.label();
                self.asm.load(Word, R1, R6, context::PROTOCOL);
                self.asm.jump_if(R1, If::Eq, layout::TCP as i32, known);
                self.asm.jump_if(R1, If::NotEq, layout::UDP as i32, pass);
                self.asm.place(known);
            }
            _ => self.asm.mov_imm(R1, layout::UDP as i32),
        }
        self.asm.op_imm(Op::ShiftLeft, R1, layout::PROTOCOL_SHIFT as i32);
        self.asm.load(Word, R2, R6, context::PORT);
        self.asm.op(Op::Or, R1, R2);
        self.asm.store(Word, R10, stack::VIP + 16, R1);
        self.store_context_address(stack::VIP);
        self.asm.mov_imm(R9, 0);

        self.asm.place(again);
        self.lookup(self.maps.services.fd(), stack::VIP, miss);
        self.asm.mov(R7, R0);
        for at in (stack::AFFINITY_KEY..stack::AFFINITY_KEY + affinity::KEY_BYTES as i16).step_by(8) {
            self.asm.store_imm(Double, R10, at, 0);
        }
        if call == Call::SendMsg {
            self.store_flow_key();
            self.lookup(self.maps.flows.fd(), stack::FLOW_KEY, pick);
            self.asm.load(Word, R1, R0, 0);
            self.asm.store(Word, R10, stack::ID, R1);
            self.lookup(self.maps.backends.fd(), stack::ID, pick);
            self.asm.mov(R8, R0);
            self.asm.jump(found);
        }

        self.asm.place(pick);
        self.pick(picked, refuse, next_attempt);
        self.asm.place(picked);
        self.remember_affinity();
        if call == Call::SendMsg {
            self.update(self.maps.flows.fd(), stack::FLOW_KEY, stack::ID);
            self.remember_reverse();
        } else {
            self.remember_connected_udp();
        }
        self.count(counters::N_CONNECTIONS);

        self.asm.place(found);
        match call {
            Call::SendMsg => self.count(counters::N_PACKETS),
            _ => self.remember_peer(),
        }
        self.write_context(R8, backend::ADDRESS);
        self.asm.load(Word, R1, R8, backend::PORT);
        self.asm.store(Word, R6, context::PORT, R1);
        self.asm.exit(PASS);

        self.asm.place(next_attempt);
        self.asm.op_imm(Op::Add, R9, 1);
        self.asm.jump_if(R9, If::Less, ATTEMPTS, again);

        self.asm.place(refuse);
        self.asm.load(Word, R1, R7, service::ID);
        self.asm.store(Word, R10, stack::ID, R1);
        self.count(counters::N_REFUSED);
        self.asm.place(refuse_uncounted);
        self.asm.mov_imm(R1, -libc::ECONNREFUSED);
        self.asm.call(Helper::SetRetval);
        self.asm.exit(REFUSE);

        self.asm.place(miss);
        for pool in pools {
            self.jump_if_in_pool(pool, refuse_uncounted);
        }
        self.asm.place(pass);
        self.asm.exit(PASS);
        self.asm.finish()
    }

    /// Leaves the backend in R8 and its number on the stack, and jumps to `picked`.
    fn pick(&mut self, picked: Label, refuse: Label, next_attempt: Label) {
        let random = self.asm.label();
        self.asm.load(Double, R1, R7, service::AFFINITY_NS);
        self.asm.jump_if(R1, If::Eq, 0, random);
        self.store_affinity_key();
        self.lookup(self.maps.affinity.fd(), stack::AFFINITY_KEY, random);
        self.asm.mov(R8, R0);
        self.asm.call(Helper::KtimeNs);
        self.asm.load(Double, R1, R8, affinity::LAST_NS);
        self.asm.op(Op::Sub, R0, R1);
        self.asm.load(Double, R1, R7, service::AFFINITY_NS);
        self.asm.jump_if_reg(R0, If::Greater, R1, random);
        self.asm.load(Word, R1, R8, affinity::BACKEND);
        self.asm.store(Word, R10, stack::ID, R1);
        self.lookup(self.maps.backends.fd(), stack::ID, random);
        self.asm.load(Word, R1, R0, backend::WEIGHT);
        self.asm.jump_if(R1, If::Eq, 0, random);
        self.asm.mov(R8, R0);
        self.asm.jump(picked);

        self.asm.place(random);
        let first = self.asm.label();
        self.asm.load(Word, R1, R7, service::N_SLOTS);
        self.asm.jump_if(R1, If::Eq, 0, refuse);
        self.asm.call(Helper::Random);
        self.asm.load(Word, R1, R7, service::N_SLOTS);
        self.asm.op(Op::Rem, R0, R1);
        self.asm.store(Word, R10, stack::SLOT_KEY + 4, R0);
        self.asm.load(Word, R1, R7, service::VERSION);
        self.asm.store(Word, R10, stack::SLOT_KEY, R1);
        self.lookup(self.maps.slots.fd(), stack::SLOT_KEY, next_attempt);
        self.asm.mov(R8, R0);
        self.asm.call(Helper::Random);
        self.asm.load(Word, R2, R8, slot::THRESHOLD);
        self.asm.load(Word, R1, R8, slot::FIRST);
        self.asm.jump_if_reg(R2, If::GreaterEq, R0, first);
        self.asm.load(Word, R1, R8, slot::SECOND);
        self.asm.place(first);
        self.asm.store(Word, R10, stack::ID, R1);
        self.lookup(self.maps.backends.fd(), stack::ID, next_attempt);
        self.asm.mov(R8, R0);
    }

    /// R6: context, R8: where the VIP stands.
    fn reverse(mut self, call: Call) -> Vec<[u8; 8]> {
        let (pass, in_storage, write, unconnected) = self.four_labels();
        self.asm.mov(R6, R1);
        self.asm.load_map(R1, self.maps.peers.fd());
        self.asm.load(Double, R2, R6, context::SOCKET);
        self.asm.mov_imm(R3, 0);
        self.asm.mov_imm(R4, 0);
        self.asm.call(Helper::SocketStorage);
        self.asm.jump_if(R0, If::NotEq, 0, in_storage);
        self.asm.jump(unconnected);
        self.asm.place(in_storage);
        self.asm.mov(R8, R0);
        self.asm.load(Word, R1, R6, context::PORT);
        self.asm.load(Word, R2, R8, peer::BACKEND_PORT);
        self.asm.jump_if_reg(R1, If::NotEq, R2, unconnected);
        match self.family {
            Family::V4 => {
                self.asm.load(Word, R1, R6, context::IP4);
                self.asm.load(Word, R2, R8, peer::BACKEND + 12);
                self.asm.jump_if_reg(R1, If::NotEq, R2, unconnected);
            }
            Family::V6 => {
                for at in (0..16).step_by(4) {
                    self.asm.load(Word, R1, R6, context::IP6 + at);
                    self.asm.load(Word, R2, R8, peer::BACKEND + at);
                    self.asm.jump_if_reg(R1, If::NotEq, R2, unconnected);
                }
            }
        }
        self.asm.jump(write);

        self.asm.place(unconnected);
        if call == Call::RecvMsg {
            self.asm.mov(R1, R6);
            self.asm.call(Helper::SocketCookie);
            self.asm.store(Double, R10, stack::REVERSE_KEY, R0);
            self.store_context_address(stack::REVERSE_KEY + 8);
            self.asm.load(Word, R1, R6, context::PORT);
            self.asm.op_imm(Op::Or, R1, (layout::UDP << layout::PROTOCOL_SHIFT) as i32);
            self.asm.store(Word, R10, stack::REVERSE_KEY + 24, R1);
            self.asm.store_imm(Word, R10, stack::REVERSE_KEY + 28, 0);
            self.lookup(self.maps.reverse.fd(), stack::REVERSE_KEY, pass);
            self.asm.mov(R8, R0);
        } else {
            self.asm.jump(pass);
        }

        self.asm.place(write);
        self.write_context(R8, peer::VIP);
        self.asm.load(Word, R1, R8, peer::VIP + 16);
        self.asm.op_imm(Op::And, R1, layout::PORT_MASK);
        self.asm.store(Word, R6, context::PORT, R1);
        self.asm.place(pass);
        self.asm.exit(PASS);
        self.asm.finish()
    }

    fn four_labels(&mut self) -> (Label, Label, Label, Label) {
        (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label())
    }

    /// R0 = the element under the key on the stack; jumps when there is none.
    fn lookup(&mut self, map: BorrowedFd<'_>, key: i16, none: Label) {
        self.asm.load_map(R1, map);
        self.stack_address(R2, key);
        self.asm.call(Helper::MapLookup);
        self.asm.jump_if(R0, If::Eq, 0, none);
    }

    /// These maps drop their oldest element when they are full, so this does not fail for want of room.
    fn update(&mut self, map: BorrowedFd<'_>, key: i16, value: i16) {
        self.asm.load_map(R1, map);
        self.stack_address(R2, key);
        self.stack_address(R3, value);
        self.asm.mov_imm(R4, 0);
        self.asm.call(Helper::MapUpdate);
    }

    fn stack_address(&mut self, to: Reg, at: i16) {
        self.asm.mov(to, R10);
        self.asm.op_imm(Op::Add, to, at.into());
    }

    /// Adds one to a counter of whatever has its number on the stack.
    fn count(&mut self, counter: i16) {
        let uncounted = self.asm.label();
        self.lookup(self.maps.counters.fd(), stack::ID, uncounted);
        self.asm.mov_imm(R1, 1);
        self.asm.add_atomic(R0, counter, R1);
        self.asm.place(uncounted);
    }

    /// The address that the call names, as 16 bytes.
    fn store_context_address(&mut self, at: i16) {
        match self.family {
            Family::V4 => {
                self.asm.store_imm(Word, R10, at, 0);
                self.asm.store_imm(Word, R10, at + 4, 0);
                self.asm.store_imm(Word, R10, at + 8, layout::MAPPED.cast_signed());
                self.asm.load(Word, R1, R6, context::IP4);
                self.asm.store(Word, R10, at + 12, R1);
            }
            Family::V6 => {
                for offset in (0..16).step_by(4) {
                    self.asm.load(Word, R1, R6, context::IP6 + offset);
                    self.asm.store(Word, R10, at + offset, R1);
                }
            }
        }
    }

    /// Makes the 16 bytes at `from + at` the address of the call.
    fn write_context(&mut self, from: Reg, at: i16) {
        match self.family {
            Family::V4 => {
                self.asm.load(Word, R1, from, at + 12);
                self.asm.store(Word, R6, context::IP4, R1);
            }
            Family::V6 => {
                for offset in (0..16).step_by(4) {
                    self.asm.load(Word, R1, from, at + offset);
                    self.asm.store(Word, R6, context::IP6 + offset, R1);
                }
            }
        }
    }

    fn store_flow_key(&mut self) {
        self.asm.mov(R1, R6);
        self.asm.call(Helper::SocketCookie);
        self.asm.store(Double, R10, stack::FLOW_KEY, R0);
        self.copy_vip(stack::FLOW_KEY + 8);
        self.asm.store_imm(Word, R10, stack::FLOW_KEY + 28, 0);
    }

    fn copy_vip(&mut self, to: i16) {
        for offset in (0..layout::FRONTEND_BYTES as i16).step_by(4) {
            self.asm.load(Word, R1, R10, stack::VIP + offset);
            self.asm.store(Word, R10, to + offset, R1);
        }
    }

    /// A client is a network namespace and, when the socket is bound, its address in it.
    fn store_affinity_key(&mut self) {
        self.asm.mov(R1, R6);
        self.asm.call(Helper::NetnsCookie);
        self.asm.store(Double, R10, stack::AFFINITY_KEY, R0);
        self.asm.load(Double, R2, R6, context::SOCKET);
        let source = stack::AFFINITY_KEY + 8;
        match self.family {
            Family::V4 => {
                let unbound = self.asm.label();
                self.asm.load(Word, R1, R2, socket::SOURCE_IP4);
                self.asm.jump_if(R1, If::Eq, 0, unbound);
                self.asm.store(Word, R10, source + 12, R1);
                self.asm.store_imm(Word, R10, source + 8, layout::MAPPED.cast_signed());
                self.asm.place(unbound);
            }
            Family::V6 => {
                for offset in (0..16).step_by(4) {
                    self.asm.load(Word, R1, R2, socket::SOURCE_IP6 + offset);
                    self.asm.store(Word, R10, source + offset, R1);
                }
            }
        }
        self.asm.load(Word, R1, R7, service::ID);
        self.asm.store(Word, R10, stack::AFFINITY_KEY + 24, R1);
    }

    fn remember_affinity(&mut self) {
        let none = self.asm.label();
        self.asm.load(Double, R1, R7, service::AFFINITY_NS);
        self.asm.jump_if(R1, If::Eq, 0, none);
        self.asm.call(Helper::KtimeNs);
        self.asm.store(Double, R10, stack::AFFINITY + affinity::LAST_NS, R0);
        self.asm.load(Word, R1, R10, stack::ID);
        self.asm.store(Word, R10, stack::AFFINITY + affinity::BACKEND, R1);
        self.asm.store_imm(Word, R10, stack::AFFINITY + affinity::BACKEND + 4, 0);
        self.update(self.maps.affinity.fd(), stack::AFFINITY_KEY, stack::AFFINITY);
        self.asm.place(none);
    }

    /// So that an answer from the backend can be shown as coming from the VIP.
    fn remember_reverse(&mut self) {
        self.asm.load(Double, R1, R10, stack::FLOW_KEY);
        self.asm.store(Double, R10, stack::REVERSE_KEY, R1);
        for offset in (0..16).step_by(4) {
            self.asm.load(Word, R1, R8, backend::ADDRESS + offset);
            self.asm.store(Word, R10, stack::REVERSE_KEY + 8 + offset, R1);
        }
        self.asm.load(Word, R1, R8, backend::PORT);
        self.asm.op_imm(Op::Or, R1, (layout::UDP << layout::PROTOCOL_SHIFT) as i32);
        self.asm.store(Word, R10, stack::REVERSE_KEY + 24, R1);
        self.asm.store_imm(Word, R10, stack::REVERSE_KEY + 28, 0);
        self.update(self.maps.reverse.fd(), stack::REVERSE_KEY, stack::VIP);
    }

    /// What a connected UDP socket sends runs through no program, so it must be found when its backend goes.
    fn remember_connected_udp(&mut self) {
        let is_tcp = self.asm.label();
        self.asm.load(Word, R1, R6, context::PROTOCOL);
        self.asm.jump_if(R1, If::NotEq, layout::UDP as i32, is_tcp);
        self.store_flow_key();
        self.update(self.maps.flows.fd(), stack::FLOW_KEY, stack::ID);
        self.asm.place(is_tcp);
    }

    /// Without memory for it the connection is made all the same, and shows its backend as its peer.
    fn remember_peer(&mut self) {
        let none = self.asm.label();
        self.asm.load_map(R1, self.maps.peers.fd());
        self.asm.load(Double, R2, R6, context::SOCKET);
        self.asm.mov_imm(R3, 0);
        self.asm.mov_imm(R4, CREATE);
        self.asm.call(Helper::SocketStorage);
        self.asm.jump_if(R0, If::Eq, 0, none);
        for offset in (0..layout::FRONTEND_BYTES as i16).step_by(4) {
            self.asm.load(Word, R1, R10, stack::VIP + offset);
            self.asm.store(Word, R0, peer::VIP + offset, R1);
        }
        for offset in (0..=backend::PORT).step_by(4) {
            self.asm.load(Word, R1, R8, backend::ADDRESS + offset);
            self.asm.store(Word, R0, peer::BACKEND + offset, R1);
        }
        self.asm.place(none);
    }

    /// The address on the stack against the pool, word by word.
    fn jump_if_in_pool(&mut self, pool: &VipPool, inside: Label) {
        let outside = self.asm.label();
        let (address, mask) = pool_words(pool);
        for (index, (address, mask)) in address.into_iter().zip(mask).enumerate() {
            if mask == 0 {
                continue;
            }
            self.asm.load(Word, R1, R10, stack::VIP + 4 * index as i16);
            if mask != u32::MAX {
                self.asm.op_imm(Op::And, R1, mask.cast_signed());
            }
            self.asm.jump_if_word(R1, If::NotEq, address, outside);
        }
        self.asm.jump(inside);
        self.asm.place(outside);
    }
}

/// A pool's network and mask, IPv4 as IPv4-mapped, in the words of a stored address.
fn pool_words(pool: &VipPool) -> ([u32; 4], [u32; 4]) {
    let (first, n_bits) = (pool.first(), pool.prefix_bits());
    let (address, n_bits) = match first {
        std::net::IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96 + u32::from(n_bits)),
        std::net::IpAddr::V6(v6) => (v6, u32::from(n_bits)),
    };
    let mask = u128::MAX.checked_shl(128 - n_bits).unwrap_or(0);
    let words = |number: u128| {
        let bytes = number.to_be_bytes();
        std::array::from_fn(|i| layout::word(&bytes, 4 * i))
    };
    (words(address.to_bits() & mask), words(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_compared_as_they_stand_in_memory() {
        let ne = u32::from_ne_bytes;
        for (pool, address, mask) in [
            (
                "11.0.0.0/8",
                [0, 0, layout::MAPPED, ne([11, 0, 0, 0])],
                [u32::MAX, u32::MAX, u32::MAX, ne([255, 0, 0, 0])],
            ),
            ("fd01:c::/64", [ne([0xfd, 1, 0, 12]), 0, 0, 0], [u32::MAX, u32::MAX, 0, 0]),
        ] {
            assert_eq!(pool_words(&pool.parse().unwrap()), (address, mask), "{pool}");
        }
    }
}
