; for (h = 0; h < 16; h++) y[h] = x[(h & 3) + c % 3];
;
; opt -mtriple=x86_64-linux-gnu -passes=loop-vectorize -S llvm_remainders.ll
;
; With LLVM 22.1 the vectors are loaded from x + c % 3 + h. `h & 3` is a counter of two bits,
; {0,+,1}<i2>, if that does not wrap around, which it does; the sum, {c % 3,+,1}<i32>, has to be
; extended to 64 bits, and must not wrap around either. SCEVWrapPredicate::implies compares start
; and step of the two, extended to one width, but not what width they had: it takes the second
; condition to imply the first one, of which no test is left. The same for aarch64-linux-gnu.
; LLVM 19 tests both, and computes the right result.
define void @repeat(ptr noalias %x, ptr noalias %y, i32 %c) {
entry:
  %start = urem i32 %c, 3
  br label %loop

loop:
  %h = phi i64 [ 0, %entry ], [ %next, %loop ]
  %narrow = trunc nuw nsw i64 %h to i32
  %remainder = and i32 %narrow, 3
  %sum = add nuw nsw i32 %remainder, %start
  %index = zext nneg i32 %sum to i64
  %from = getelementptr inbounds nuw float, ptr %x, i64 %index
  %value = load float, ptr %from, align 4
  %to = getelementptr inbounds nuw float, ptr %y, i64 %h
  store float %value, ptr %to, align 4
  %next = add nuw nsw i64 %h, 1
  %done = icmp eq i64 %next, 16
  br i1 %done, label %exit, label %loop

exit:
  ret void
}
