"""What `bench.proxy` measures with: a provider, a load and a bare pass-through, each its own process.

The provider and the load speak HTTP by hand, so that two cores are left to the gateways under test.
"""
