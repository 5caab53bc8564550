//! The programs, one for each socket call: what `tests/ebpf/wm.bpf.c` says in C, in instructions.
//!
//! `connect` and `sendmsg` look a VIP up, pick a backend and put its address in the VIP's place; `recvmsg` and
//! `getpeername` put the VIP back; `sock_ops` counts when a connection has ended. They keep no state but the maps', and
//! attach nothing.

use event_watcher::catalog::VipPool;

use super::asm::{Asm, Helper, If, Label, Op, Reg::*, Width::*};
use super::layout::{self, affinity, backend, counters, peer, service, slot, talk};
use super::maps::Maps;
use super::steps::{ANY, Family, Program, context, event, stack};
use super::sys::ProgramType;

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
enum Call {
    Connect,
    SendMsg,
    RecvMsg,
    GetPeerName,
    /// Not a call, but what happens to a TCP socket.
    SockOps,
}

impl Hook {
    pub fn program_type(self) -> ProgramType {
        match self.call {
            Call::SockOps => ProgramType::SockOps,
            _ => ProgramType::SockAddr,
        }
    }
}

const fn hook(name: &'static str, attach_type: u32, family: Family, call: Call) -> Hook {
    Hook { name, attach_type, family, call }
}

/// In the order in which they are attached: what puts VIPs back stands before what takes them away.
pub const HOOKS: [Hook; 9] = [
    // Of either family: all that it looks at is the socket's number.
    hook("sock_ops", 3, Family::V4, Call::SockOps),
    hook("getpeername4", 29, Family::V4, Call::GetPeerName),
    hook("getpeername6", 30, Family::V6, Call::GetPeerName),
    hook("recvmsg4", 19, Family::V4, Call::RecvMsg),
    hook("recvmsg6", 20, Family::V6, Call::RecvMsg),
    hook("sendmsg4", 14, Family::V4, Call::SendMsg),
    hook("sendmsg6", 15, Family::V6, Call::SendMsg),
    hook("connect4", 10, Family::V4, Call::Connect),
    hook("connect6", 11, Family::V6, Call::Connect),
];

const PASS: i32 = 1;
const REFUSE: i32 = 0;
/// A change may take away what was found a moment ago; then the service is looked up again, this often.
const ATTEMPTS: i32 = 4;

/// The instructions of the program for `hook`. Everything in `pools` that is no VIP is refused.
pub fn assemble(hook: Hook, maps: &Maps, pools: &[VipPool]) -> Vec<[u8; 8]> {
    let program = Program { asm: Asm::default(), family: hook.family, maps };
    match hook.call {
        Call::Connect | Call::SendMsg => program.forward(hook.call, pools),
        Call::RecvMsg | Call::GetPeerName => program.reverse(hook.call),
        Call::SockOps => program.account(),
    }
}

impl Program<'_> {
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
        if call == Call::SendMsg {
            self.go_on_talking();
        }
        self.asm.mov_imm(R9, 0);

        self.asm.place(again);
        self.lookup(self.maps.services.fd(), stack::VIP, miss);
        self.take_service(next_attempt);
        for at in (stack::AFFINITY_KEY..stack::AFFINITY_KEY + affinity::KEY_BYTES as i16).step_by(8) {
            self.asm.store_imm(Double, R10, at, 0);
        }
        if call == Call::SendMsg {
            self.store_flow_key();
            self.lookup(self.maps.flows.fd(), stack::FLOW_KEY, pick);
            self.asm.load(Word, R1, R0, 0);
            self.asm.store(Word, R10, stack::ID, R1);
            self.lookup(self.maps.backends.fd(), stack::ID, pick);
            self.take_backend(pick);
            self.asm.jump(found);
        }

        self.asm.place(pick);
        self.pick(picked, refuse, next_attempt);
        self.asm.place(picked);
        self.remember_affinity();
        if call == Call::SendMsg {
            self.update(self.maps.flows.fd(), stack::FLOW_KEY, stack::ID, ANY);
            self.remember_reverse();
        } else {
            self.remember_connected();
        }
        self.count(counters::N_CONNECTIONS);

        self.asm.place(found);
        if call == Call::SendMsg {
            self.remember_talk();
        }
        self.address_to(backend::ADDRESS, backend::PORT);

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

    /// Most datagrams follow another one to the same VIP: all that can have changed is that the backend is gone.
    fn go_on_talking(&mut self) {
        let (anew, gone) = (self.asm.label(), self.asm.label());
        self.find_talk(anew);
        self.asm.mov(R8, R0);
        self.jump_unless_on_stack(R8, talk::VIP, stack::VIP, layout::FRONTEND_BYTES as i16, anew);
        self.asm.load(Word, R1, R8, talk::BACKEND_ID);
        self.asm.store(Word, R10, stack::ID, R1);
        self.lookup(self.maps.backends.fd(), stack::ID, gone);
        self.address_to(talk::BACKEND, talk::BACKEND_PORT);
        self.asm.place(gone);
        self.forget_talk();
        self.asm.place(anew);
    }

    /// Ends the program with the address and port in R8 as those of the call.
    fn address_to(&mut self, address: i16, port: i16) {
        self.write_context(R8, address);
        self.asm.load(Word, R1, R8, port);
        self.asm.store(Word, R6, context::PORT, R1);
        self.asm.exit(PASS);
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
        self.take_backend(random);
        self.asm.load(Word, R1, R8, backend::WEIGHT);
        self.asm.jump_if(R1, If::Eq, 0, random);
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
        self.asm.load(Word, R1, R8, slot::FIRST);
        self.asm.load(Word, R2, R8, slot::SECOND);
        self.asm.jump_if_reg(R1, If::Eq, R2, first);
        self.asm.call(Helper::Random);
        self.asm.load(Word, R2, R8, slot::THRESHOLD);
        self.asm.load(Word, R1, R8, slot::FIRST);
        self.asm.jump_if_reg(R2, If::GreaterEq, R0, first);
        self.asm.load(Word, R1, R8, slot::SECOND);
        self.asm.place(first);
        self.asm.store(Word, R10, stack::ID, R1);
        self.lookup(self.maps.backends.fd(), stack::ID, next_attempt);
        self.take_backend(next_attempt);
    }

    /// R8: where the VIP stands.
    fn reverse(mut self, call: Call) -> Vec<[u8; 8]> {
        let (pass, is_tcp, write) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.mov(R6, R1);
        if call == Call::GetPeerName {
            self.asm.load(Word, R1, R6, context::PROTOCOL);
            self.asm.jump_if(R1, If::Eq, layout::TCP as i32, is_tcp);
        }
        self.lookup_reverse(pass);
        if call == Call::GetPeerName {
            self.asm.jump(write);
            self.asm.place(is_tcp);
            self.lookup_vip_of_peer(pass);
        }
        self.asm.place(write);
        self.asm.mov(R8, R0);
        self.write_context(R8, 0);
        self.asm.load(Word, R1, R8, 16);
        self.asm.op_imm(Op::And, R1, layout::PORT_MASK);
        self.asm.store(Word, R6, context::PORT, R1);
        self.asm.place(pass);
        self.asm.exit(PASS);
        self.asm.finish()
    }

    /// Asks for the changes of state of sockets that `connect` gave a backend, and counts at the last of them. So
    /// nothing runs for a packet, and what counts costs the same however long the connection was.
    fn account(mut self) -> Vec<[u8; 8]> {
        let (pass, changed, of_service, add) = self.four_labels();
        let was_open = self.asm.label();
        self.asm.mov(R6, R1);
        self.asm.load(Word, R1, R6, event::OP);
        self.asm.jump_if(R1, If::Eq, STATE_CHANGES, changed);
        self.asm.jump_if(R1, If::NotEq, CONNECTS, pass);
        self.lookup_own_peer(pass);
        self.asm.load(Word, R2, R6, event::FLAGS);
        self.asm.op_imm(Op::Or, R2, TELL_STATES);
        self.asm.mov(R1, R6);
        self.asm.call(Helper::SetSockOpsFlags);
        self.asm.exit(PASS);

        self.asm.place(changed);
        self.asm.load(Word, R1, R6, event::NEW_STATE);
        self.asm.jump_if(R1, If::NotEq, CLOSED, pass);
        self.asm.load(Word, R7, R6, event::OLD_STATE);
        self.asm.jump_if(R7, If::Eq, CLOSED, pass);
        self.lookup_own_peer(pass);
        self.asm.load(Word, R1, R0, peer::BACKEND_ID);
        self.asm.store(Word, R10, stack::ID, R1);
        self.asm.load(Word, R1, R0, peer::SERVICE_ID);
        self.asm.store(Word, R10, stack::SERVICE_ID, R1);
        self.asm.load(Double, R8, R6, event::BYTES_ACKED);
        self.asm.load(Double, R9, R6, event::BYTES_RECEIVED);
        // The counters of a backend that was removed have been added up.
        self.lookup(self.maps.counters.fd(), stack::ID, of_service);
        self.asm.jump(add);
        self.asm.place(of_service);
        self.find_counters(stack::SERVICE_ID, pass);

        self.asm.place(add);
        self.asm.jump_if(R7, If::NotEq, CONNECTING, was_open);
        self.asm.mov_imm(R1, 1);
        self.asm.add_atomic(R0, counters::N_FAILED, R1);
        self.asm.exit(PASS);
        self.asm.place(was_open);
        // The SYN counts as a byte.
        self.asm.op_imm(Op::Sub, R8, 1);
        self.asm.add_atomic(R0, counters::BYTES_IN, R8);
        self.asm.add_atomic(R0, counters::BYTES_OUT, R9);
        self.asm.place(pass);
        self.asm.exit(PASS);
        self.asm.finish()
    }
}

/// `BPF_SOCK_OPS_TCP_CONNECT_CB` and `BPF_SOCK_OPS_STATE_CB`.
const CONNECTS: i32 = 3;
const STATE_CHANGES: i32 = 10;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`
const TELL_STATES: i32 = 1 << 2;
/// `BPF_TCP_SYN_SENT` and `BPF_TCP_CLOSE`.
const CONNECTING: i32 = 2;
const CLOSED: i32 = 7;
