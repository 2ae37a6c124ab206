-- The test archive's own rules.

-- Orthanc's DICOM port cannot be bound to loopback alone: take nothing from other machines.
function ReceivedInstanceFilter(dicom, origin)
  return origin['RequestOrigin'] ~= 'DicomProtocol' or origin['RemoteIp'] == '127.0.0.1'
end

-- Routing, switched on and off through the REST interface: every modality whose name starts with "auto-" receives each
-- instance that arrives, as it arrived.
function OnStoredInstance(instance)
  for _, modality in pairs(ParseJson(RestApiGet('/modalities'))) do
    if string.sub(modality, 1, 5) == 'auto-' then
      SendToModality(instance, modality)
    end
  end
end
