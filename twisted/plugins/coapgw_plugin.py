"""Tells twistd that there is ``twistd coapgw``; everything else waits until it is asked for."""

from twisted.application.service import ServiceMaker

coapgw = ServiceMaker("coapgw", "coapgw.tap", "CoAP endpoint for cellular IoT devices.", "coapgw")
