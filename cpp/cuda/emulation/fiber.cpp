#include "fiber.h"

#include <cstdint>
#include <cstdlib>
#include <utility>

#if !defined(__x86_64__) || !defined(__linux__)
#include <ucontext.h>
#endif

namespace softq::emulation {
namespace {

constexpr std::size_t stack_bytes = 64 << 10;
Fiber* starting = nullptr;

}  // namespace

#if defined(__x86_64__) && defined(__linux__)

// Saves the registers that a call must keep on the stack, stores the stack's address in *from and
// goes on where `to` was left. ucontext does the same with a system call each time, for minutes of
// tests.
extern "C" void softq_switch_stack(void** from, void* to);
asm(R"(
.text
.type softq_switch_stack,@function
softq_switch_stack:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size softq_switch_stack,.-softq_switch_stack
)");

struct Fiber::Context {
  void* inside = nullptr;
  void* outside = nullptr;
};

void Fiber::start(std::function<void()> body) {
  body_ = std::move(body);
  // As softq_switch_stack leaves a stack: six registers, then the address to return to. There the
  // stack must be 8 beyond a multiple of 16, as after a call.
  auto top = reinterpret_cast<std::uintptr_t>(stack_.get() + stack_bytes) & ~std::uintptr_t{15};
  auto** stack = reinterpret_cast<void**>(top) - 8;
  stack[6] = reinterpret_cast<void*>(&Fiber::entry);
  stack[7] = nullptr;
  context_->inside = stack;
}

void Fiber::enter() {
  starting = this;
  softq_switch_stack(&context_->outside, context_->inside);
}
void Fiber::leave() { softq_switch_stack(&context_->inside, context_->outside); }

#else

struct Fiber::Context {
  ucontext_t inside, outside;
};

void Fiber::start(std::function<void()> body) {
  body_ = std::move(body);
  getcontext(&context_->inside);
  context_->inside.uc_stack.ss_sp = stack_.get();
  context_->inside.uc_stack.ss_size = stack_bytes;
  makecontext(&context_->inside, &Fiber::entry, 0);
}

void Fiber::enter() {
  starting = this;
  swapcontext(&context_->outside, &context_->inside);
}
void Fiber::leave() { swapcontext(&context_->inside, &context_->outside); }

#endif

Fiber::Fiber() : stack_(new char[stack_bytes]), context_(std::make_unique<Context>()) {}
Fiber::~Fiber() = default;

void Fiber::entry() { main(starting); }

void Fiber::main(Fiber* fiber) {
  fiber->body_();
  fiber->leave();
  std::abort();  // nobody enters a fiber that has returned
}

}  // namespace softq::emulation
