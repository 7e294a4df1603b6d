-- Counts primes, to detect a broken compiler or a damaged file.
local limit, composite, count = 10000, {}, 0
for n = 2, limit do
  if not composite[n] then
    count = count + 1
    for multiple = n * n, limit, n do composite[multiple] = true end
  end
end
assert(count == 1229, "there are 1229 primes below 10000, not " .. count)
print(_VERSION .. ": " .. count .. " primes below " .. limit)
