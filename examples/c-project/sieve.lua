-- Counts primes, so that a wrong compiler or a torn file would show.
local limit, composite, count = 10000, {}, 0
for n = 2, limit do
  if not composite[n] then
    count = count + 1
    for multiple = n * n, limit, n do composite[multiple] = true end
  end
end
assert(count == 1229, "there are 1229 primes below 10000, not " .. count)
print(_VERSION .. ": " .. count .. " primes below " .. limit)
