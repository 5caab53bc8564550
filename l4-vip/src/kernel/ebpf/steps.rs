//! The steps that programs are made of: look-ups, keys on the stack, what is remembered of a pick, counting.
//!
//! Which of them a program takes, and in which order, stands in `programs`.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use event_watcher::catalog::VipPool;

use super::asm::{Asm, Helper, If, Label, Op, Reg, Reg::*, Width::*};
use super::layout::{self, affinity, backend, counters, peer, service, talk};
use super::maps::Maps;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Offsets in `struct bpf_sock_addr`.
pub mod context {
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

/// Offsets in `struct bpf_sock_ops`.
pub mod event {
    pub const OP: i16 = 0;
    pub const OLD_STATE: i16 = 4;
    pub const NEW_STATE: i16 = 8;
    pub const FLAGS: i16 = 84;
    pub const BYTES_RECEIVED: i16 = 168;
    pub const BYTES_ACKED: i16 = 176;
}

/// Places on the stack, below the frame pointer.
pub mod stack {
    /// The VIP: `FrontendKey`.
    pub const VIP: i16 = -24;
    pub const SLOT_KEY: i16 = -32;
    /// The backend's number, or the service's when it refuses.
    pub const ID: i16 = -40;
    pub const FLOW_KEY: i16 = -72;
    pub const REVERSE_KEY: i16 = -104;
    pub const AFFINITY_KEY: i16 = -136;
    pub const AFFINITY: i16 = -152;
    /// Copies, because an element that was found may be given to another key at any moment.
    pub const SERVICE: i16 = -200;
    pub const BACKEND: i16 = -232;
    pub const PEER_KEY: i16 = -240;
    pub const SERVICE_ID: i16 = -248;
    pub const COUNTERS: i16 = -288;
    pub const TALK: i16 = -336;
}

/// Flags of an update: `BPF_ANY` and `BPF_NOEXIST`. Maps that forget their oldest element take any.
pub const ANY: i32 = 0;
const NEW: i32 = 1;
/// `BPF_LOCAL_STORAGE_GET_F_CREATE`
const CREATE: i32 = 1;

/// R6: the context of the call, R7: the service, R8: the backend, as far as they are known; R9: attempts, and then a
/// cookie.
pub struct Program<'a> {
    pub asm: Asm,
    pub family: Family,
    pub maps: &'a Maps,
}

impl Program<'_> {
    pub fn four_labels(&mut self) -> (Label, Label, Label, Label) {
        (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label())
    }

    /// R0 = the element under the key on the stack; jumps when there is none.
    pub fn lookup(&mut self, map: BorrowedFd<'_>, key: i16, none: Label) {
        self.asm.load_map(R1, map);
        self.stack_address(R2, key);
        self.asm.call(Helper::MapLookup);
        self.asm.jump_if(R0, If::Eq, 0, none);
    }

    pub fn update(&mut self, map: BorrowedFd<'_>, key: i16, value: i16, flags: i32) {
        self.asm.load_map(R1, map);
        self.stack_address(R2, key);
        self.stack_address(R3, value);
        self.asm.mov_imm(R4, flags);
        self.asm.call(Helper::MapUpdate);
    }

    pub fn stack_address(&mut self, to: Reg, at: i16) {
        self.asm.mov(to, R10);
        self.asm.op_imm(Op::Add, to, at.into());
    }

    /// Makes R7 a copy of the service in R0; jumps if it is not, or no more, the VIP's.
    pub fn take_service(&mut self, lost: Label) {
        for at in (0..service::USED_BYTES).step_by(8) {
            self.asm.load(Double, R1, R0, at);
            self.asm.store(Double, R10, stack::SERVICE + at, R1);
        }
        self.stack_address(R7, stack::SERVICE);
        let n_bytes = layout::FRONTEND_BYTES as i16;
        self.jump_unless_on_stack(R0, service::FRONTEND, stack::VIP, n_bytes, lost);
    }

    /// Makes R8 a copy of the backend in R0; jumps if it is not, or no more, one of the service's.
    pub fn take_backend(&mut self, lost: Label) {
        for at in (0..backend::BYTES as i16).step_by(4) {
            self.asm.load(Word, R1, R0, at);
            self.asm.store(Word, R10, stack::BACKEND + at, R1);
        }
        self.stack_address(R8, stack::BACKEND);
        self.asm.load(Word, R1, R8, backend::SERVICE);
        self.asm.load(Word, R2, R7, service::ID);
        self.asm.jump_if_reg(R1, If::NotEq, R2, lost);
    }

    /// Adds one to a counter of whatever has its number on the stack.
    pub fn count(&mut self, counter: i16) {
        let none = self.asm.label();
        self.find_counters(stack::ID, none);
        self.asm.mov_imm(R1, 1);
        self.asm.add_atomic(R0, counter, R1);
        self.asm.place(none);
    }

    /// R0 = the counters of whatever has its number on the stack, made when there are none; jumps when there is no
    /// memory for them.
    pub fn find_counters(&mut self, id: i16, none: Label) {
        let (first, found) = (self.asm.label(), self.asm.label());
        self.lookup(self.maps.counters.fd(), id, first);
        self.asm.jump(found);
        self.asm.place(first);
        for at in (0..counters::BYTES as i16).step_by(8) {
            self.asm.store_imm(Double, R10, stack::COUNTERS + at, 0);
        }
        // It fails when another CPU was first.
        self.update(self.maps.counters.fd(), id, stack::COUNTERS, NEW);
        self.lookup(self.maps.counters.fd(), id, none);
        self.asm.place(found);
    }

    /// The address that the call names, as 16 bytes.
    pub fn store_context_address(&mut self, at: i16) {
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
    pub fn write_context(&mut self, from: Reg, at: i16) {
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

    /// R0 = what the socket keeps of its first conversation; jumps when it keeps none.
    pub fn find_talk(&mut self, none: Label) {
        self.asm.mov_imm(R3, 0);
        self.asm.mov_imm(R4, 0);
        self.call_of_socket(Helper::SkStorageGet);
        self.asm.jump_if(R0, If::Eq, 0, none);
    }

    pub fn forget_talk(&mut self) {
        self.call_of_socket(Helper::SkStorageDelete);
    }

    /// What the socket keeps already stays. Without memory for it answers show the backend.
    pub fn remember_talk(&mut self) {
        self.copy_vip(stack::TALK + talk::VIP);
        for offset in (0..=backend::PORT).step_by(4) {
            self.asm.load(Word, R1, R8, backend::ADDRESS + offset);
            self.asm.store(Word, R10, stack::TALK + talk::BACKEND + offset, R1);
        }
        self.asm.load(Word, R1, R10, stack::ID);
        self.asm.store(Word, R10, stack::TALK + talk::BACKEND_ID, R1);
        self.stack_address(R3, stack::TALK);
        self.asm.mov_imm(R4, CREATE);
        self.call_of_socket(Helper::SkStorageGet);
    }

    fn call_of_socket(&mut self, helper: Helper) {
        self.asm.load_map(R1, self.maps.talks.fd());
        self.asm.load(Double, R2, R6, context::SOCKET);
        self.asm.call(helper);
    }

    /// Jumps if the words at `at` behind `left` differ from those on the stack.
    pub fn jump_unless_on_stack(&mut self, left: Reg, at: i16, on_stack: i16, n_bytes: i16, differ: Label) {
        for offset in (0..n_bytes).step_by(4) {
            self.asm.load(Word, R1, left, at + offset);
            self.asm.load(Word, R2, R10, on_stack + offset);
            self.asm.jump_if_reg(R1, If::NotEq, R2, differ);
        }
    }

    pub fn store_flow_key(&mut self) {
        self.asm.mov(R1, R6);
        self.asm.call(Helper::SocketCookie);
        self.asm.store(Double, R10, stack::FLOW_KEY, R0);
        self.copy_vip(stack::FLOW_KEY + 8);
        self.asm.store_imm(Word, R10, stack::FLOW_KEY + 28, 0);
    }

    pub fn copy_vip(&mut self, to: i16) {
        for offset in (0..layout::FRONTEND_BYTES as i16).step_by(4) {
            self.asm.load(Word, R1, R10, stack::VIP + offset);
            self.asm.store(Word, R10, to + offset, R1);
        }
    }

    /// A client is a network namespace and, when the socket is bound, its address in it.
    pub fn store_affinity_key(&mut self) {
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

    pub fn remember_affinity(&mut self) {
        let none = self.asm.label();
        self.asm.load(Double, R1, R7, service::AFFINITY_NS);
        self.asm.jump_if(R1, If::Eq, 0, none);
        self.asm.call(Helper::KtimeNs);
        self.asm.store(Double, R10, stack::AFFINITY + affinity::LAST_NS, R0);
        self.asm.load(Word, R1, R10, stack::ID);
        self.asm.store(Word, R10, stack::AFFINITY + affinity::BACKEND, R1);
        self.asm.store_imm(Word, R10, stack::AFFINITY + affinity::BACKEND + 4, 0);
        self.update(self.maps.affinity.fd(), stack::AFFINITY_KEY, stack::AFFINITY, ANY);
        self.asm.place(none);
    }

    /// So that an answer from the backend can be shown as coming from the VIP.
    pub fn remember_reverse(&mut self) {
        self.asm.load(Double, R1, R10, stack::FLOW_KEY);
        self.asm.store(Double, R10, stack::REVERSE_KEY, R1);
        for offset in (0..16).step_by(4) {
            self.asm.load(Word, R1, R8, backend::ADDRESS + offset);
            self.asm.store(Word, R10, stack::REVERSE_KEY + 8 + offset, R1);
        }
        self.asm.load(Word, R1, R8, backend::PORT);
        self.asm.store(Word, R10, stack::REVERSE_KEY + 24, R1);
        self.asm.store_imm(Word, R10, stack::REVERSE_KEY + 28, 0);
        self.update(self.maps.reverse.fd(), stack::REVERSE_KEY, stack::VIP, ANY);
    }

    /// R0 = the VIP that the call's address stands for; jumps when it is no backend of this UDP socket.
    pub fn lookup_reverse(&mut self, none: Label) {
        let (another, found) = (self.asm.label(), self.asm.label());
        // A socket that keeps no conversation has never spoken to a VIP.
        self.find_talk(none);
        self.asm.mov(R8, R0);
        self.store_context_address(stack::REVERSE_KEY + 8);
        self.asm.load(Word, R1, R6, context::PORT);
        self.asm.store(Word, R10, stack::REVERSE_KEY + 24, R1);
        self.jump_unless_on_stack(R8, talk::BACKEND, stack::REVERSE_KEY + 8, 20, another);
        self.asm.mov(R0, R8);
        self.asm.jump(found);

        self.asm.place(another);
        self.asm.mov(R1, R6);
        self.asm.call(Helper::SocketCookie);
        self.asm.store(Double, R10, stack::REVERSE_KEY, R0);
        self.asm.store_imm(Word, R10, stack::REVERSE_KEY + 28, 0);
        self.lookup(self.maps.reverse.fd(), stack::REVERSE_KEY, none);
        self.asm.place(found);
    }

    /// R0 = the place of this TCP socket, R9 = its cookie.
    fn lookup_peer(&mut self, none: Label) {
        self.asm.mov(R1, R6);
        self.asm.call(Helper::SocketCookie);
        self.asm.mov(R9, R0);
        self.asm.op_imm(Op::And, R0, self.maps.n_peers().cast_signed() - 1);
        self.asm.store(Word, R10, stack::PEER_KEY, R0);
        self.lookup(self.maps.peers.fd(), stack::PEER_KEY, none);
    }

    /// The same, if the place is still this socket's.
    pub fn lookup_own_peer(&mut self, none: Label) {
        self.lookup_peer(none);
        self.asm.load(Double, R1, R0, peer::COOKIE);
        self.asm.jump_if_reg(R1, If::NotEq, R9, none);
    }

    /// So that a TCP socket that asks for its peer can be shown the VIP. The cookie is taken away first and written
    /// last: whoever reads meanwhile finds a place that is nobody's.
    fn remember_peer(&mut self, done: Label) {
        self.lookup_peer(done);
        self.asm.store_imm(Double, R0, peer::COOKIE, 0);
        for offset in (0..layout::FRONTEND_BYTES as i16).step_by(4) {
            self.asm.load(Word, R1, R10, stack::VIP + offset);
            self.asm.store(Word, R0, peer::VIP + offset, R1);
        }
        for offset in (0..=backend::PORT).step_by(4) {
            self.asm.load(Word, R1, R8, backend::ADDRESS + offset);
            self.asm.store(Word, R0, peer::BACKEND + offset, R1);
        }
        self.asm.load(Word, R1, R10, stack::ID);
        self.asm.store(Word, R0, peer::BACKEND_ID, R1);
        self.asm.load(Word, R1, R7, service::ID);
        self.asm.store(Word, R0, peer::SERVICE_ID, R1);
        self.asm.store(Double, R0, peer::COOKIE, R9);
    }

    /// R0 = the VIP that this TCP socket's peer stands for; jumps when it stands for none.
    pub fn lookup_vip_of_peer(&mut self, none: Label) {
        self.lookup_own_peer(none);
        let same = |program: &mut Self, asked: i16, stored: i16| {
            program.asm.load(Word, R1, R6, asked);
            program.asm.load(Word, R2, R0, stored);
            program.asm.jump_if_reg(R1, If::NotEq, R2, none);
        };
        same(self, context::PORT, peer::BACKEND_PORT);
        match self.family {
            Family::V4 => same(self, context::IP4, peer::BACKEND + 12),
            Family::V6 => (0..16)
                .step_by(4)
                .for_each(|offset| same(self, context::IP6 + offset, peer::BACKEND + offset)),
        }
        self.asm.op_imm(Op::Add, R0, peer::VIP.into());
    }

    /// What a connected UDP socket sends runs through no program, so it must be found when its backend goes.
    pub fn remember_connected(&mut self) {
        let (is_tcp, done) = (self.asm.label(), self.asm.label());
        self.asm.load(Word, R1, R6, context::PROTOCOL);
        self.asm.jump_if(R1, If::Eq, layout::TCP as i32, is_tcp);
        self.store_flow_key();
        self.update(self.maps.flows.fd(), stack::FLOW_KEY, stack::ID, ANY);
        self.remember_reverse();
        // The socket may have been connected to another VIP before.
        self.forget_talk();
        self.remember_talk();
        self.asm.jump(done);
        self.asm.place(is_tcp);
        self.remember_peer(done);
        self.asm.place(done);
    }

    /// The address on the stack against the pool, word by word.
    pub fn jump_if_in_pool(&mut self, pool: &VipPool, inside: Label) {
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
        IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96 + u32::from(n_bits)),
        IpAddr::V6(v6) => (v6, u32::from(n_bits)),
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
