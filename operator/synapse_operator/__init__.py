"""The operator: turns each SynapseScale into running workers and tells in its status how they are.

Data flows one way: observe (`cluster`, `backends`) -> decide (`desired`, `plan`) -> act (`cluster.apply`) -> report
(`status`). The deciding modules are pure; what the workers read and promise is `synapse_worker.contract`.
"""
