-- Proves that the interpreter works: closures, tables, strings, integers, coroutines.
local function fibonacci(n)
  local a, b = 0, 1
  for _ = 1, n do a, b = b, a + b end
  return a
end
assert(fibonacci(90) == 2880067194370816120)

local words = {}
for word in ("a layer is the only thing that moves"):gmatch("%a+") do
  words[#words + 1] = word
end
table.sort(words)
assert(table.concat(words, " ") == "a is layer moves only that the thing")

local squares = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i * i) end end)
assert(squares() + squares() + squares() == 14)

print(_VERSION .. " works: fibonacci(90) = " .. fibonacci(90))
